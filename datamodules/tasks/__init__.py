"""Tasks: one file each."""

from datamodules.tasks.auto_circuit import AutoCircuitTask
from datamodules.tasks.base import AbstractTask, PromptPair, TokenPair
from datamodules.tasks.boolean import BooleanExpressions
from datamodules.tasks.capitals import Capitals
from datamodules.tasks.compiled import CompiledTask
from datamodules.tasks.docstring import Docstring
from datamodules.tasks.eap_csv import EAPCSVTask
from datamodules.tasks.gendered_pronoun import GenderedPronoun
from datamodules.tasks.greater_than import GreaterThan
from datamodules.tasks.hf_dataset import HFDatasetTask
from datamodules.tasks.induction import Induction
from datamodules.tasks.ioi import IOI
from datamodules.tasks.jsonl import JSONLTask
from datamodules.tasks.subject_verb import SubjectVerb
from datamodules.tasks.tracr import TracrTask
from datamodules.tasks.word_pairs import WordPairs

__all__ = [
    "IOI",
    "AbstractTask",
    "AutoCircuitTask",
    "BooleanExpressions",
    "Capitals",
    "CompiledTask",
    "Docstring",
    "EAPCSVTask",
    "GenderedPronoun",
    "GreaterThan",
    "HFDatasetTask",
    "Induction",
    "JSONLTask",
    "PromptPair",
    "SubjectVerb",
    "TokenPair",
    "TracrTask",
    "WordPairs",
]

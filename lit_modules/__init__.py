"""Lightning modules and callbacks."""

from lit_modules.checkpoints import RunCheckpoint
from lit_modules.compare import CompareToReference
from lit_modules.polish import Polish
from lit_modules.progress import RunProgress
from lit_modules.pruning import PruningModule
from lit_modules.regrow import RegrowCircuits
from lit_modules.signed import SignedScores
from lit_modules.snapshots import SnapshotCircuits
from lit_modules.tracking import UploadCircuits, WandbTracker
from lit_modules.weight_pruning import WeightPruningModule

__all__ = [
    "CompareToReference",
    "Polish",
    "PruningModule",
    "RegrowCircuits",
    "RunCheckpoint",
    "RunProgress",
    "SignedScores",
    "SnapshotCircuits",
    "UploadCircuits",
    "WandbTracker",
    "WeightPruningModule",
]

"""Losses: faithfulness of the predictions, and what pushes gates shut."""

from edgeprune.objectives.faithfulness import OBJECTIVES as OBJECTIVES
from edgeprune.objectives.faithfulness import Objective as Objective
from edgeprune.objectives.faithfulness import kl_divergence as kl_divergence
from edgeprune.objectives.faithfulness import masked_mean as masked_mean
from edgeprune.objectives.faithfulness import squared_error as squared_error
from edgeprune.objectives.sparsity import AbstractSparsityTerm as AbstractSparsityTerm
from edgeprune.objectives.sparsity import GeometricPenalty as GeometricPenalty
from edgeprune.objectives.sparsity import Lagrangian as Lagrangian

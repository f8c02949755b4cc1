"""Losses: faithfulness of the predictions, and what pushes gates shut."""

from edgeprune.objectives.losses import OBJECTIVES as OBJECTIVES
from edgeprune.objectives.losses import Objective as Objective
from edgeprune.objectives.losses import error_measure as error_measure
from edgeprune.objectives.losses import kl_divergence as kl_divergence
from edgeprune.objectives.losses import masked_mean as masked_mean
from edgeprune.objectives.losses import squared_error as squared_error
from edgeprune.objectives.pace import Pace as Pace
from edgeprune.objectives.ramp import RampPenalty as RampPenalty
from edgeprune.objectives.sparsity import AbstractSparsityTerm as AbstractSparsityTerm
from edgeprune.objectives.sparsity import GeometricPenalty as GeometricPenalty
from edgeprune.objectives.sparsity import Lagrangian as Lagrangian

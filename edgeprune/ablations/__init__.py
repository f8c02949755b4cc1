"""What closed edges carry: the corrupted run, another example's run, nothing, a mean, or learned constants.

`Ablation.parse` reads the form in which configs and commands say it; `edgeprune.ablations.runs` puts it to use.
"""

from edgeprune.ablations.constants import LearnedConstants as LearnedConstants
from edgeprune.ablations.constants import LearningOptions as LearningOptions
from edgeprune.ablations.constants import learn_constants as learn_constants
from edgeprune.ablations.files import load_states as load_states
from edgeprune.ablations.files import save_states as save_states
from edgeprune.ablations.means import mean as mean
from edgeprune.ablations.means import mean_of_pairs as mean_of_pairs
from edgeprune.ablations.means import zero as zero
from edgeprune.ablations.resampling import SourceExamples as SourceExamples
from edgeprune.ablations.spec import Ablation as Ablation

"""Methods: recipes that learn gates, and discoveries that find circuits without training."""

from edgeprune.methods.acdc import ACDC as ACDC
from edgeprune.methods.backward_rules import BackwardRules as BackwardRules
from edgeprune.methods.base import AbstractRecipe as AbstractRecipe
from edgeprune.methods.baselines import ActivationMagnitude as ActivationMagnitude
from edgeprune.methods.baselines import RandomScores as RandomScores
from edgeprune.methods.contextual_decomposition import ContextualDecomposition as ContextualDecomposition
from edgeprune.methods.disco_gp import DiscoGP as DiscoGP
from edgeprune.methods.disco_gp import DiscoGPWeights as DiscoGPWeights
from edgeprune.methods.discovery import AbstractDiscovery as AbstractDiscovery
from edgeprune.methods.discovery import DiscoveryResult as DiscoveryResult
from edgeprune.methods.eap import EAP as EAP
from edgeprune.methods.eap_ig import EAPIG as EAPIG
from edgeprune.methods.edge_pruning import EdgePruning as EdgePruning
from edgeprune.methods.exact import ExactEdgePatching as ExactEdgePatching
from edgeprune.methods.hisp import HISP as HISP
from edgeprune.methods.information_flow import InformationFlowRoutes as InformationFlowRoutes
from edgeprune.methods.matryoshka import Matryoshka as Matryoshka
from edgeprune.methods.node_pruning import NodePruning as NodePruning
from edgeprune.methods.polish import Polisher as Polisher
from edgeprune.methods.polish import Polishing as Polishing
from edgeprune.methods.problem import Problem as Problem
from edgeprune.methods.regrow import Regrow as Regrow
from edgeprune.methods.selection import Selection as Selection
from edgeprune.methods.subnetwork_probing import SubnetworkProbing as SubnetworkProbing
from edgeprune.methods.ugs import UGS as UGS
from edgeprune.methods.warm_start import WarmStart as WarmStart

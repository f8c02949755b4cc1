"""Gate distributions."""

from edgeprune.gates.base import AbstractGates as AbstractGates
from edgeprune.gates.base import top_k as top_k
from edgeprune.gates.base import uniform_noise as uniform_noise
from edgeprune.gates.hard_concrete import HardConcrete as HardConcrete
from edgeprune.gates.sigmoid_top_k import sigmoid_top_k as sigmoid_top_k
from edgeprune.gates.uniform_window import UniformWindow as UniformWindow

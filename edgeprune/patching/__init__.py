"""Activation and path patching: what one run's values do in the other run, site by site, nothing approximated."""

from edgeprune.patching.activations import activation as activation
from edgeprune.patching.paths import path as path
from edgeprune.patching.result import PatchingResult as PatchingResult

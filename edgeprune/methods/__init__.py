"""Recipes: how gates are learned."""

from edgeprune.methods.base import AbstractRecipe as AbstractRecipe
from edgeprune.methods.edge_pruning import EdgePruning as EdgePruning

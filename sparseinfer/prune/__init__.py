"""Pruning: schedules and magnitude pruning with the masks held during training."""

from sparseinfer.prune.gradual import MagnitudePruner, PolynomialDecay, global_magnitude_masks

__all__ = ["MagnitudePruner", "PolynomialDecay", "global_magnitude_masks"]

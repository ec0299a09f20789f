"""Fused ops of rows, where their parts are: the residual sum and its norm are one kernel of :mod:`.rms_norm`."""

from llmcore_triton.rms_norm import add_rms_norm

__all__ = ["add_rms_norm"]

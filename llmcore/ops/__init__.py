"""The op contract: every op's signature, its torch reference, and the cases that kernels are tested on.

Importing this package imports no torch: references import it when they run.
"""

from llmcore.ops import attention, elementwise, embedding, fused, linear, rms_norm, rope, sampling  # noqa: F401
from llmcore.ops.base import OPS, Apart, Builder, Case, Eager, OpSpec, Param, get

NAMES: tuple[str, ...] = tuple(sorted(OPS))

__all__ = ["NAMES", "OPS", "Apart", "Builder", "Case", "Eager", "OpSpec", "Param", "get"]

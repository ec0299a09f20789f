"""A kernel around a kernel: the same call under other thread numbers. Importing this imports Numba."""

from __future__ import annotations

from llmcore.native.abi import load_i64, native_kernel
from llmcore.native.memory import call_kernel


@native_kernel
def renumbered(operands: int, thread: int, threads: int) -> None:
    """Calls the kernel at ``operands[1]`` with the table ``operands[2]``, thread ``t`` as ``t * operands[3]``."""
    step = load_i64(operands + 24)
    call_kernel(load_i64(operands + 8), load_i64(operands + 16), thread * step, (threads - 1) * step + 1)

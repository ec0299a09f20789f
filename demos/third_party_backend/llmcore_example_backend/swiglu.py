"""swiglu as a native kernel, compiled by Numba when it is first bound and kept on disk from then on."""

import math

import numpy as np

from llmcore.native.abi import array, claim, dim, native_kernel, tensor

# The operands of swiglu(gate: act[M, F], up: act[M, F]) -> y: act[M, F]: tensors, then dims, then attributes (none).
GATE, UP, Y, M, F = range(5)
CHUNK = 4096  # elements that a thread takes at a time


@native_kernel
def swiglu(operands, _thread, _threads):
    """``silu(gate) * up``; ``y`` may be the memory of either."""
    size = dim(operands, M) * dim(operands, F)
    gate = array(tensor(operands, GATE), size, np.float32)
    up = array(tensor(operands, UP), size, np.float32)
    y = array(tensor(operands, Y), size, np.float32)
    first = claim(operands) * CHUNK
    while first < size:
        for i in range(first, min(first + CHUNK, size)):
            y[i] = gate[i] / (np.float32(1) + math.exp(-gate[i])) * up[i]
        first = claim(operands) * CHUNK

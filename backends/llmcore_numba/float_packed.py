"""What packs float weights: from the rows of a checkpoint to the blocks of :mod:`llmcore_numba.float_packing`."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmcore.weights.tensor import Tensor
from llmcore_numba.float_packing import FLOAT_PACKINGS, ROWS

Array = np.ndarray[Any, Any]


def pack_floats(tensor: Tensor) -> Array:
    """A weight ``[N, K]`` as unsigned integers of its own bits ``[ceil(N / 32), ceil(K / columns), 32, columns]``."""
    packing = FLOAT_PACKINGS[tensor.format.name]
    rows, columns = tensor.shape
    bits = tensor.raw().view(np.dtype(f"<u{packing.nbytes}")).reshape(rows, columns)
    out = np.empty((-(-rows // ROWS), -(-columns // packing.columns), ROWS, packing.columns), bits.dtype)
    words = out.view(f"<u{packing.nbytes * packing.columns}")[..., 0]  # what lies side by side stays together
    for block, vectors in enumerate(words):
        part = bits[block * ROWS : (block + 1) * ROWS]
        if part.size < out[block].size:
            whole = np.zeros((ROWS, len(vectors) * packing.columns), bits.dtype)
            whole[: len(part), :columns] = part
            part = whole
        vectors[...] = part.view(words.dtype).T
    return out

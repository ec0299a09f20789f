"""Weights of 8 bits with one scale for each row, made of any others: what packs them.

A row's largest magnitude becomes the largest code. One array holds a matrix, as two regions one behind the other::

    codes   int8 or float8 e4m3  [N, P]     P: columns up to a multiple of 16, the last ones zero
    scales  float32              [N]

Its shape is ``[N, P + 4]``, bytes. Unlike the layouts of :mod:`llmcore_triton.packing` this one loses something: the
backends that use it are taken by who asks for them by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.device.host import aligned

if TYPE_CHECKING:
    from llmcore.weights.tensor import Tensor

Array = np.ndarray[Any, Any]

WIDTH = 16  # columns that a row is padded to a multiple of: a load of a thread
INT8_LARGEST, FP8_LARGEST = 127, 448


def padded(columns: int) -> int:
    """Columns of packed rows."""
    return -(-columns // WIDTH) * WIDTH


def pack_int8(tensor: Tensor) -> Array:
    """Packs a weight [N, K] as int8, rounded to nearest: layout ``rows-int8``, version 1."""
    values, scales = _scaled(tensor, INT8_LARGEST)
    return _packed(np.rint(values).astype(np.int8), scales)


def pack_fp8(tensor: Tensor) -> Array:
    """Packs a weight [N, K] as float8 e4m3 (Micikevicius et al. 2022, arXiv:2209.05433): layout ``rows-fp8``, 1."""
    import ml_dtypes

    values, scales = _scaled(tensor, FP8_LARGEST)
    return _packed(values.astype(ml_dtypes.float8_e4m3fn), scales)


def _scaled(tensor: Tensor, largest: int) -> tuple[Array, Array]:
    values = tensor.dequantize()
    scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(largest)
    scales[scales == 0] = 1
    return np.divide(values, scales, out=values), scales


def _packed(codes: Array, scales: Array) -> Array:
    rows, columns = codes.shape
    width = padded(columns)
    out = aligned(rows * (width + 4))
    out[: rows * width].reshape(rows, width)[:, :columns] = codes.view(np.uint8)
    out[rows * width :] = scales.reshape(-1).view(np.uint8)
    return out.reshape(rows, width + 4)

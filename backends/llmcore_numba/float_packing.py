"""Packed float weights: how matrices of F32, F16 and BF16 lie in memory for the float kernels.

Rows are taken thirty-two at a time, and kept side by side from the first column to the last::

    matrix  [rows / 32] blocks; missing rows are zero
    block   F32, F16    [columns][32 rows]
            BF16        [columns / 2][32 rows][2 columns]; a missing column is zero

A vector is sixteen of these rows. It is multiplied with one element of a token, or one pair, repeated, so no sum ever
crosses a vector, and a kernel reads a block as one stream. Pairs are what ``vdpbf16ps`` multiplies. There are two
vectors side by side because the sums of one alone would wait for each other for longer than memory takes.

Nothing here imports numpy or Numba: listing the backend reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

ROWS, VECTORS = 32, 2  # of a block


@dataclass(frozen=True)
class FloatPacking:
    """A kind of block.

    Attributes:
        nbytes: of a weight.
        columns: side by side in a vector.
    """

    nbytes: int
    columns: int

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector: sixteen rows, ``columns`` columns."""
        return ROWS // VECTORS * self.columns * self.nbytes

    @property
    def layout(self) -> tuple[str, int]:
        """Name and version."""
        return f"rows{ROWS}-float{8 * self.nbytes}x{self.columns}", 1


FLOAT_PACKINGS = {"F32": FloatPacking(4, 1), "F16": FloatPacking(2, 1), "BF16": FloatPacking(2, 2)}
"""Weight format → the packing that it gets, without loss."""

FLOAT_OPS = (
    "linear",
    "linear_add",
    "gate_up_swiglu",
    "rms_norm_gate_up_swiglu",
    "classifier_argmax",
    "qkv_rope_kv_write",
    "rms_norm_qkv_rope_kv_write",
)
"""Ops that run on packed float weights."""

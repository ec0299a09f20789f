"""Packed weights: how quantized matrices lie in memory for the integer kernels, and what packs them.

Rows are taken thirty-two at a time, and so are columns. Such a block holds everything that is needed to multiply it, in
the order of its use and in whole cache lines, so a kernel reads a matrix as one stream::

    block   [32 scales f16] [32 minima f16, where the format has them] [codes]
    codes of 8 bits         [8 quads of columns][32 rows][4 columns]           1024 bytes, signed
    codes of 4 bits         [4 quads of columns][32 rows][4 columns]           512 bytes, unsigned
                            the low half of a byte is column k, the high half column k + 16
    matrix  [rows / 32][columns / 32] blocks; missing rows are zero

A quad of columns of sixteen rows is one vector of 64 bytes, or two of 32. Multiplied with the same quad of a token,
repeated, it gives four products for each row, which the processor adds within each row's 32 bits: no sum ever crosses a
vector. A weight is ``scale * code + minimum``; a format of 4 bits without minima has ``minimum = -8 * scale``.

Nothing here imports numpy or Numba: listing the backend reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

ROWS, COLUMNS = 32, 32  # of a block
VECTORS = 2  # of sixteen rows in a block
QUAD = 64 * VECTORS  # bytes of a quad of columns of all rows


@dataclass(frozen=True)
class Packing:
    """A kind of block.

    Attributes:
        bits: of a code, 4 (unsigned) or 8 (signed).
        minima: whether there are minima.
    """

    bits: int
    minima: bool

    @property
    def head(self) -> int:
        """Bytes of scales and minima."""
        return 4 * ROWS if self.minima else 2 * ROWS

    @property
    def nbytes(self) -> int:
        """Bytes of a block."""
        return self.head + ROWS * COLUMNS * self.bits // 8

    @property
    def name(self) -> str:
        """For kernels: ``int4``, ``int8_min`` …"""
        return f"int{self.bits}{'_min' if self.minima else ''}"

    @property
    def layout(self) -> tuple[str, int]:
        """Name and version."""
        return f"rows32-{self.name}", 1


PANEL = 8
"""Quantized tokens lie side by side in panels of so many: one alone in a panel of one, the last repeated to its end."""

CODES, SCALE, TOTAL, LESS, RECORD = 0, 32, 36, 40, 44
"""Where the parts of a group of 32 columns begin in a panel of one token, and their bytes; each is ``[…][token]``.

``CODES`` are int8 ``[8 quads][token][4]``. ``SCALE`` is float32, ``TOTAL`` that times the sum of the codes, ``LESS``
int32, minus that sum. Behind the groups of a panel come the outliers of its tokens 0 … 3, then those of 4 … 7: first
where they begin, where the first ones end, and where the others end (int32), then for each outlier its token and column
(int32) and its value (float32).
"""

LISTED = 4  # tokens whose outliers are listed together, column by column, since those of one would wait for each other
ENTRY, FOR_TOKEN = 8, 3  # bytes of an outlier; bits of its token, below those of its column
FEWEST_MEANS = 4  # no more than a quarter of a token's elements are so many means large

OUTLIER = {
    "qkv_rope_kv_write": 8.0,
    "rms_norm_qkv_rope_kv_write": 8.0,
    "linear": 6.0,
    "linear_add": 12.0,
    "gate_up_swiglu": 8.0,
    "rms_norm_gate_up_swiglu": 8.0,
    "classifier_argmax": 6.0,  # as linear: greedy ids are those of the logits
}
"""Op that runs on packed weights → from which size on, in means of its token, an element is an outlier.

It is left out of its group, and multiplied by itself in float32: it would leave the others of its group a few steps of
8 bits. Without this SmolLM2 answered otherwise where two tokens were nearly as good. Bounds are a compromise with the
time that takes: the gates feel errors most; what SwiGLU has made has many such elements, of little weight.
"""


def list_head(panel: int) -> int:
    """Bytes before a panel's first outlier."""
    return 16 if panel > 1 else 8


def panel_bytes(columns: int, panel: int) -> int:
    """Bytes of a panel of ``panel`` tokens."""
    return list_head(panel) + panel * (columns // COLUMNS * RECORD + columns // FEWEST_MEANS * ENTRY)


def quantized_bytes(tokens: int, columns: int) -> int:
    """Bytes of all panels."""
    return panel_bytes(columns, 1) if tokens == 1 else (tokens + PANEL - 1) // PANEL * panel_bytes(columns, PANEL)


PACKINGS = {
    "Q8_0": Packing(8, minima=False),
    "Q4_0": Packing(4, minima=False),
    "Q4_1": Packing(4, minima=True),
    "Q5_0": Packing(8, minima=False),
    "Q5_1": Packing(8, minima=True),
    "Q4_K": Packing(4, minima=True),
    "Q5_K": Packing(8, minima=True),
    "Q6_K": Packing(8, minima=False),
}
"""Weight format → the packing that it gets.

Without loss up to Q5_1. Q4_K and Q5_K keep their codes, and the products of their factors are rounded to 16 bits. Q6_K
has sub-blocks of 16: it is quantized again, to 8 bits in groups of 32, with errors below 1/254 of a group's largest
weight. Q2_K and Q3_K would grow threefold that way; they stay with the exact kernels.
"""

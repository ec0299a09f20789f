"""How a product of few tokens is cut into programs, by the sizes of its matrices and the device.

Two things have to be many enough: bytes that a multiprocessor has asked for and not got yet (some 40 KB on an H100: its
share of bandwidth times latency), so tiles are a few KB each and many run beside each other; and programs, so that the
last ones do not run alone: where rows do not give enough, columns are split.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from llmcore_triton.configs import Config, being_searched, config
from llmcore_triton.device import target
from llmcore_triton.packing import EIGHT, form_of

if TYPE_CHECKING:
    import torch

FEW = 16
"""Tokens up to which floats are multiplied by our kernels: beyond, the vendor's library reads them as fast."""

FEW_PACKED = 128
"""The same of packed weights: beyond, they are unpacked once to the tokens' type and multiplied by the library. That
costs the time of moving 5 to 10 times the packed bytes, whatever the number of tokens, and a tile of ours multiplies 64
tokens, so that the second one finds its weights in the cache, but unpacks them again."""

TOKENS = (1, 16, 32, 64)  # of a tile
GEMV_BYTES, DOT_BYTES = 8192, 16384  # of weights, in a tile
WASTE = 1.06  # columns of all tiles by columns that there are, at most


@dataclass(frozen=True)
class Plan:
    """The grid and the constants of a launch.

    Attributes:
        tokens, split: of ``config``: tokens of a tile; parts of the columns.
    """

    form: int
    tokens: int
    config: Config
    split: int
    even: bool

    @property
    def constants(self) -> dict[str, int]:
        """As keyword arguments of a launch, but for the form."""
        return {"BM": self.tokens, "SPLIT": self.split, "EVEN": self.even, **self.config.options}

    def programs(self, tokens: int, rows: int) -> int:
        """Tiles of a matrix of ``rows`` rows with ``tokens`` tokens."""
        return -(-tokens // self.tokens) * -(-rows // self.config.meta["BN"])


def form_of_weight(weight: torch.Tensor, columns: int) -> int:
    """The form of a weight that a kernel was given: 0 for floats."""
    return form_of(weight.shape[1], columns) if weight.element_size() == 1 else 0


def plan(x: torch.Tensor, weight: torch.Tensor, rows: int, *, split: bool = True, sides: int = 1) -> Plan:
    """The plan for tokens ``x`` [M, K] and a weight like ``weight``, of ``rows`` rows in all matrices of the launch.

    Args:
        split: whether columns may be split.
        sides: matrices that a program multiplies at the same time.
    """
    tokens, columns = x.shape
    form = form_of_weight(weight, columns)
    bits = (8 if form & EIGHT else 4) if form else 8 * weight.element_size()
    shape = form, bits, 8 * x.element_size(), min(tokens, TOKENS[-1]), rows, columns, split, sides
    return _plan(*shape) if being_searched() else _known_plan(*shape, target().name)


@cache
def _known_plan(*shape: Any) -> Plan:
    return _plan(*shape[:-1])


def _plan(form: int, bits: int, wide: int, tokens: int, rows: int, columns: int, split: bool, sides: int) -> Plan:
    """``wide``: bits of the tokens' elements."""
    block = next(size for size in TOKENS if tokens <= size)
    kind = f"{'packed' if form else 'dense'}{bits}"
    if block == 1:
        chosen = config(f"gemv-{kind}", (rows, columns), _gemv(bits, rows, columns, sides))
    else:
        chosen = config(f"dot-{kind}", (block, rows, columns), _dot(form, bits, wide, block, rows, sides))
    inner = chosen.meta["BK"]
    parts = parts_of(-(-rows // chosen.meta["BN"]), -(-columns // inner), 2 if block > 1 else 1) if split else 1
    return Plan(form, block, chosen, parts, columns % (inner * parts) == 0)


def _gemv(bits: int, rows: int, columns: int, sides: int) -> Config:
    """A tile is some rows by as many columns as 128 threads load at once, or fewer where these do not divide all."""
    vector = 128 // bits
    widths = [32 * vector * warps for warps in (4, 2, 1)]
    inner = next((width for width in widths if -(-columns // width) * width <= WASTE * columns), widths[-1])
    outer = max(1, GEMV_BYTES * 8 // (inner * bits) // sides)
    while outer > 2 and rows < 4 * target().multiprocessors * outer:
        outer //= 2
    most = 8 if sides > 1 and bits == 4 else 4  # unpacked, the codes of two matrices take most registers of 4 warps
    return Config({"BN": outer, "BK": inner}, num_warps=_warps(outer * inner * bits, most), num_stages=1)


def _dot(form: int, bits: int, wide: int, tokens: int, rows: int, sides: int) -> Config:
    """64 rows are what Hopper's matrix units take at once; other devices take 16, and do as well with tiles of 64."""
    outer = 64
    while outer > 16 and rows < target().multiprocessors * outer // 4:
        outer //= 2
    most = 256 if bits == 4 and tokens < 64 else 128  # what is unpacked lies in registers
    inner = min(DOT_BYTES * 8 // (64 * bits), most)
    stages = 4 if target().shared > 100_000 and not form else 2
    while inner > 32 and _shared(form, bits, wide, tokens, outer * sides, inner, stages) > 0.9 * target().shared:
        stages, inner = (stages - 1, inner) if stages > 1 else (stages, inner // 2)
    most = 4 if outer > 32 else 2
    return Config({"BN": outer, "BK": inner}, num_warps=_warps(outer * inner * bits, most), num_stages=stages)


def _shared(form: int, bits: int, wide: int, tokens: int, outer: int, inner: int, stages: int) -> int:
    """Bytes of shared memory that tiles of a weight and of tokens take at most.

    Floats that are narrower than the tokens are there a second time, in their type; packed weights widen in registers.
    """
    buffers = stages if target().cuda else max(stages - 1, 1)
    staged = buffers * inner * (outer * bits + tokens * wide)
    return (staged + (outer * inner * wide if bits != wide and not form else 0)) // 8


def _warps(bits: int, most: int) -> int:
    """As many as load a tile of ``bits`` with 16 bytes a thread: with more, loads would be narrower, not more."""
    return min(most, max(1, bits // (128 * target().warp)))


def parts_of(tiles: int, blocks: int, each: int) -> int:
    """Parts of the columns: so that there are nearly ``each`` programs a multiprocessor, of two tiles at least."""
    parts = 1
    while tiles * parts * 5 < 4 * each * target().multiprocessors and blocks >= 4 * parts and parts < 16:
        parts *= 2
    return parts

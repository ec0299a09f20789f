"""Where the integer kernels find their tokens quantized: all threads did it before, or a single one each does itself.

With one token a stage of its own would cost more than the work in it: the threads would wait for each other, and fetch
from each other's caches what one of them has made. So each that gets a chunk of the op makes what it needs in its own
memory. Ops that begin with a norm have tokens normed on the way.
"""

from __future__ import annotations

from collections.abc import Callable

from llmcore.native.abi import (
    NativeFunction,
    claim,
    dim,
    f64_attr,
    inlined,
    native_kernel,
    scratch,
    specialised,
    tensor,
)
from llmcore_numba.operands import names_of
from llmcore_numba.packing import OUTLIER, PANEL
from llmcore_numba.quantize import limits_for, panel_bytes, quantize_panel
from llmcore_numba.rms_norm import normalise
from llmcore_numba.scratch import OWN_TOKEN

X = NORM = T = K = E = NORM_EPS = WORKSPACE = 0  # operands: each op has its own
HEAD = 64  # bytes of scratch memory that quantize_panel works in
limits_of = limits_for("linear")  # each op has its own


def _as_they_are(operands, _first, _last, _rows):
    """The address that tokens ``first`` … ``last`` lie behind, each as far as its number says."""
    return tensor(operands, X)


def _normed(operands, first, last, rows):
    """The same for tokens that are normed, at ``rows``."""
    inner, size = dim(operands, K), dim(operands, E)
    source, weight, eps = tensor(operands, X) + first * inner * 4, tensor(operands, NORM), f64_attr(operands, NORM_EPS)
    at, end = 0, (last + 1 - first) * inner * 4
    while at < end:
        normalise(source + at, weight, rows + at, size, eps)
        at += size * 4
    return rows - first * inner * 4


rows_of = inlined(_as_they_are)  # each op has its own


def _quantize(operands, thread, _threads):
    tokens, inner = dim(operands, T), dim(operands, K)
    out, work = tensor(operands, WORKSPACE), scratch(operands, thread)
    panel = PANEL if tokens > 1 else 1
    first = claim(operands) * panel
    while first < tokens:
        x = rows_of(operands, first, min(first + panel, tokens) - 1, work + HEAD)
        to = out + first // panel * panel_bytes(inner, panel)
        quantize_panel(limits_of, x, to, first, tokens - 1, inner, panel, work)
        first = claim(operands) * panel


def _shared(operands, _thread):
    return tensor(operands, WORKSPACE)


def _own(operands, thread):
    inner, work = dim(operands, K), scratch(operands, thread) + OWN_TOKEN
    out = work + HEAD
    x = rows_of(operands, 0, 0, out + (panel_bytes(inner, 1) + 63 & ~63))
    quantize_panel(limits_of, x, out, 0, 0, inner, 1, work)
    return out


def _constants(op: str) -> dict[str, object]:
    names = names_of(op)
    names["T"] = names.get("T", names.get("M"))  # tokens
    constants = {name: names[name] for name in ("X", "NORM", "T", "K", "E", "NORM_EPS", "WORKSPACE") if name in names}
    rows = inlined(specialised(_normed if "NORM" in names else _as_they_are, f"rows_{op}", **constants))
    return {**constants, "rows_of": rows, "limits_of": limits_for(op)}


def tokens_of(op: str, *, alone: bool) -> Callable[[int, int], int]:
    """``tokens(operands, thread)``: the address of the op's quantized tokens, for a thread that has a chunk.

    ``alone``: there is one token, and nobody has quantized it yet.
    """
    template = _own if alone else _shared
    return inlined(specialised(template, f"{template.__name__}_{op}", **_constants(op)))


class PerOp:
    """``kernels.linear`` quantizes the first input of ``linear``, ``x: act[M, K]``, into the workspace."""

    def __getattr__(self, op: str) -> NativeFunction:
        if op not in OUTLIER:
            raise AttributeError(op)
        kernel = native_kernel(specialised(_quantize, f"quantize_{op}", **_constants(op)))
        setattr(self, op, kernel)
        return kernel


quantized = PerOp()

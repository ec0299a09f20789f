"""Whether a result is right, and a message that helps where it is not."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from llmcore.ops import tolerances
from llmcore.testing.buffers import Array, KernelMismatch


def compare(name: str, got: Array, want: Array, factor: float, *, exact_zeros: bool = False) -> None:
    """Raises :class:`KernelMismatch` unless ``got`` is ``want`` up to :func:`llmcore.ops.tolerances.allowed`.

    What the type of ``got`` cannot hold may be infinite there: float16 ends at 65504.

    Args:
        factor: see :func:`llmcore.ops.tolerances.relative`; integers must be equal whatever it is.
        exact_zeros: an element that is wanted to be zero must be zero, and no other may be.
    """
    if got.dtype.kind == "i":
        wrong = got != want
        _report(name, wrong, got, want, "")
        return
    largest = float(ml_dtypes.finfo(got.dtype).max)
    got = got.astype(np.float64)
    missing = np.isnan(got) & ~np.isnan(want)
    _report(name, missing, got, want, "not written, or NaN: ")
    bound = tolerances.allowed(want, factor)
    with np.errstate(invalid="ignore"):  # inf - inf
        overflown = np.isinf(got) & (np.sign(got) == np.sign(want)) & (np.abs(want) + bound > largest)
        wrong = ~((np.abs(got - want) <= bound) | (got == want) | overflown)
    _report(name, wrong, got, want, "beyond the tolerance: ", bound)
    if exact_zeros:
        _report(name, (got == 0) != (want == 0), got, want, "removed or kept wrongly: ")


def compare_choice(name: str, got: Array, scores: Array, factor: float) -> None:
    """Raises :class:`KernelMismatch` unless every row's choice is the best by ``scores``, up to their tolerance.

    For a row of scores that holds NaN it must be -1.
    """
    broken = np.isnan(scores).any(-1)
    _report(name, broken & (got != -1), got, np.where(broken, -1, got), "not -1 for NaN: ")
    got, scores = got[~broken], scores[~broken]
    outside = (got < 0) | (got >= scores.shape[1])
    best = scores.argmax(-1)
    _report(name, outside, got, best, "not a column: ")
    rows = np.arange(len(scores))
    lacking = scores[rows, best].astype(np.float64) - scores[rows, got]
    _report(name, lacking > tolerances.allowed(scores, factor)[rows, best], got, best, "not the best of its row: ")


def compare_bits(name: str, got: Array, want: Array, when: str) -> None:
    """Raises :class:`KernelMismatch` unless the two have the same bits; ``when`` says what differed between them."""
    if got.tobytes() != want.tobytes():
        _report(name, got != want, got, want, f"depends on {when}: ")


def _report(name: str, wrong: Array, got: Array, want: Array, what: str, bound: Array | None = None) -> None:
    if not wrong.any():
        return
    difference = np.where(wrong, np.abs(np.nan_to_num(got.astype(np.float64)) - want), -1.0)
    worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(difference)), wrong.shape))
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    allowed = f" (allowed difference {bound[worst]:.2g})" if bound is not None else ""
    raise KernelMismatch(
        f"output {name}: {what}{int(wrong.sum())} of {wrong.size} elements, first at {list(first)}; "
        f"the worst, {list(worst)}, is {got[worst]:.9g} and should be {want[worst]:.9g}{allowed}"
    )

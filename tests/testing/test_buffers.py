"""Guarded memory sees every byte that changes around it, and results are judged element by element."""

from __future__ import annotations

import numpy as np
import pytest

from llmcore.device.base import numpy_dtype
from llmcore.testing.buffers import Guarded, KernelMismatch
from llmcore.testing.judge import compare, compare_bits

F32 = np.dtype(np.float32)


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 7), (4,)])
def test_guards_are_on_both_sides(shape: tuple[int, ...], skewed: bool) -> None:
    guarded = Guarded.output("y", shape, F32, skewed=skewed)
    guarded.array[...] = 1
    guarded.check()
    assert (guarded.address % 64 == 0) is not skewed
    for offset in (-1, guarded.array.nbytes):
        byte = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * 1).from_address(guarded.address + offset))
        byte[0] ^= 1
        with pytest.raises(KernelMismatch, match="y: 1 bytes outside it were overwritten"):
            guarded.check()
        guarded.check()  # said once


def test_operands_to_be_read_are_read_only() -> None:
    guarded = Guarded.holding("x", np.arange(6, dtype=np.float32))
    guarded.array[2] = 9
    with pytest.raises(KernelMismatch, match="x: was changed"):
        guarded.check()
    Guarded.holding("x", np.arange(6, dtype=np.float32)).release().array[2] = 9


def test_outputs_begin_as_nothing_plausible() -> None:
    assert np.isnan(Guarded.output("y", (3,), numpy_dtype("bfloat16")).array.astype(np.float32)).all()
    assert (Guarded.output("ids", (3,), np.dtype(np.int32)).array == 0x5A5A5A5A).all()


def test_comparison_names_the_first_and_the_worst() -> None:
    want = np.ones((2, 3))
    got = want.copy()
    got[0, 2], got[1, 1] = 1.1, 3.0
    message = (
        r"output y: beyond the tolerance: 2 of 6 elements, first at \[0, 2\]; the worst, \[1, 1\], is 3 and should be 1"
    )
    with pytest.raises(KernelMismatch, match=message):
        compare("y", got, want, 1e-3)
    compare("y", got, want, 1.0)


def test_infinities_must_be_where_they_should() -> None:
    want = np.array([-np.inf, 1.0])
    compare("y", want, want, 1e-5)
    for got in ([1.0, 1.0], [-np.inf, np.inf], [np.inf, 1.0], [-np.inf, np.nan]):
        with pytest.raises(KernelMismatch):
            compare("y", np.array(got), want, 1e-5)


def test_what_a_type_cannot_hold_may_be_infinite() -> None:
    want = np.array([7e4, -7e4, 6e4, 1.0])
    compare("y", np.array([np.inf, -np.inf, 6e4, 1], np.float16), want, 4e-3)
    for wrong in ([-np.inf, -np.inf, 6e4, 1], [np.inf, -np.inf, np.inf, 1], [np.inf, -np.inf, 6e4, np.inf]):
        with pytest.raises(KernelMismatch, match="beyond the tolerance"):
            compare("y", np.array(wrong, np.float16), want, 4e-3)
    with pytest.raises(KernelMismatch, match="beyond the tolerance"):
        compare("y", np.array([np.inf, -7e4, 6e4, 1], np.float32), want, 4e-3)


def test_removed_elements_must_be_zero_and_no_others() -> None:
    want = np.array([0.5, 0.5, 0.0, 1e-9])
    compare("y", want, want, 1e-3, exact_zeros=True)
    for got in ([0.5, 0.5, 1e-9, 1e-9], [0.5, 0.5, 0.0, 0.0]):
        compare("y", np.array(got), want, 1e-3)
        with pytest.raises(KernelMismatch, match="removed or kept wrongly: 1 of 4"):
            compare("y", np.array(got), want, 1e-3, exact_zeros=True)


def test_bits_are_compared_as_bits() -> None:
    one = np.ones(3, np.float32)
    compare_bits("y", one, one.copy(), "nothing")
    with pytest.raises(KernelMismatch, match="depends on the weather: 1 of 3"):
        compare_bits("y", np.nextafter(one, np.float32([1, 2, 1])), one, "the weather")

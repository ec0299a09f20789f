"""Vectors of 16 lanes against numpy; nothing outside of what was asked for is read or written."""

from __future__ import annotations

import ml_dtypes
import numba
import numpy as np
import pytest

from llmcore.native import vector as v
from llmcore.native.exponential import exp, exp2, sigmoid


@numba.njit
def _function(kind, value):
    if kind == 0:
        return exp(value)
    if kind == 1:
        return sigmoid(value)
    return exp2(value)


@numba.njit
def _map(kind, x, y, count):
    """``y`` = one function of ``count`` float32 at ``x``, the tail by itself."""
    whole = count & ~15
    for i in range(0, whole, 16):
        value = v.load(x + i * 4)
        v.store(y + i * 4, _function(kind, value))
    if whole < count:
        value = v.load_first(x + whole * 4, count - whole)
        v.store_first(y + whole * 4, _function(kind, value), count - whole)


@numba.njit
def _sixteen(kind, x, y, count):
    """One vector at ``x``, converted to float32."""
    if kind == 0:
        v.store(y, v.load_f16(x))
    elif kind == 1:
        v.store(y, v.load_bf16(x))
    elif kind == 2:
        v.store(y, v.load_f16_first(x, count))
    elif kind == 3:
        v.store(y, v.load_bf16_first(x, count))
    elif kind == 4:
        v.store(y, v.from_u8(v.load_u8(x)))
    elif kind == 5:
        v.store(y, v.from_i8(v.load_u8(x)))
    elif kind == 6:
        v.store(y, v.from_u8((v.load_u8(x) >> v.splat_u8(np.uint8(3))) & v.splat_u8(np.uint8(7))))
    elif kind == 7:
        v.store(y, v.from_u8(v.bits(np.uint16(count))))
    elif kind == 8:
        v.store(y, v.first_or(v.load(x), count, v.splat(np.float32(-1))))
    elif kind == 9:
        v.store(y, v.load_twice(x))
    elif kind == 10:
        v.store(y, v.crossed(v.load(x)))
    else:
        v.store(y, v.at_least(v.load(x), v.splat(np.float32(0.5))))


@numba.njit
def _folds(x):
    return v.total(v.load(x)), v.largest(v.load(x))


def _convert(kind: int, data: np.ndarray, count: int = 16) -> np.ndarray:
    y = np.zeros(16, np.float32)
    _sixteen(kind, data.ctypes.data, y.ctypes.data, count)
    return y


def _apply(kind: int, x: np.ndarray) -> np.ndarray:
    y = np.full(len(x) + 16, 7, np.float32)
    _map(kind, x.ctypes.data, y.ctypes.data, len(x))
    assert (y[len(x) :] == 7).all()
    return y[: len(x)]


def test_exp_is_within_two_units_in_the_last_place() -> None:
    x = np.linspace(-87, 88, 100_003, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(_apply(0, x) - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()


def test_exp_at_the_edges() -> None:
    x = np.array([0, -0.0, -np.inf, -1000, -87.4, np.nan, 200], np.float32)
    y = _apply(0, x)
    np.testing.assert_array_equal(y[:6], np.array([1, 1, 0, 0, 0, np.nan], np.float32))
    assert np.isfinite(y[6])
    assert y[6] > 1e38


def test_powers_of_two() -> None:
    x = np.concatenate([np.linspace(-126, 126, 100_003), np.arange(-126, 127)]).astype(np.float32)
    exact = np.exp2(x.astype(np.float64))
    assert (np.abs(_apply(2, x) - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()
    edges = np.array([0, -0.0, -np.inf, -1000, -127, 5, np.nan], np.float32)
    np.testing.assert_array_equal(_apply(2, edges), np.array([1, 1, 0, 0, 0, 32, np.nan], np.float32))


def test_sigmoid() -> None:
    x = np.concatenate([np.linspace(-80, 80, 5_001), [-1000, 1000, np.nan]]).astype(np.float32)
    y = _apply(1, x)
    exact = 1 / (1 + np.exp(-x[:-3].astype(np.float64)))
    np.testing.assert_allclose(y[:-3], exact, rtol=5e-7)
    np.testing.assert_array_equal(y[-3:], np.array([0, 1, np.nan], np.float32))


@pytest.mark.parametrize(("kind", "dtype"), [(0, np.float16), (1, ml_dtypes.bfloat16)])
def test_every_16_bit_float(kind: int, dtype: type) -> None:
    words = np.arange(1 << 16, dtype=np.uint16)
    got = np.concatenate([_convert(kind, words[i : i + 16]) for i in range(0, len(words), 16)])
    np.testing.assert_array_equal(got, words.view(dtype).astype(np.float32))  # denormals, infinities and NaN as well


@pytest.mark.parametrize(("kind", "dtype"), [(2, np.float16), (3, ml_dtypes.bfloat16)])
@pytest.mark.parametrize("count", [0, 1, 7, 15])
def test_the_first_few_and_zeros(kind: int, dtype: type, count: int) -> None:
    x = np.arange(1, 17, dtype=np.float32).astype(dtype)
    wanted = np.where(np.arange(16) < count, np.arange(1, 17), 0)
    np.testing.assert_array_equal(_convert(kind, x, count), wanted)


def test_bytes_and_their_fields() -> None:
    for start in range(0, 256, 16):
        x = np.arange(start, start + 16, dtype=np.uint8)
        np.testing.assert_array_equal(_convert(4, x), x)
        np.testing.assert_array_equal(_convert(5, x), x.view(np.int8))
        np.testing.assert_array_equal(_convert(6, x), x >> 3 & 7)


def test_bits_and_selections() -> None:
    nothing = np.zeros(16, np.float32)
    np.testing.assert_array_equal(_convert(7, nothing, 0b1000_0000_0000_1101), [1, 0, 1, 1] + [0] * 11 + [1])
    x = np.linspace(0, 1, 16, dtype=np.float32)
    np.testing.assert_array_equal(_convert(11, x), np.where(x >= 0.5, x, 0))
    for count in (-5, 0, 3, 16, 100):
        np.testing.assert_array_equal(_convert(8, x, count), np.where(np.arange(16) < count, x, -1))


def test_neighbours() -> None:
    x = np.arange(16, dtype=np.float32)
    np.testing.assert_array_equal(_convert(9, x[:8].copy()), np.repeat(x[:8], 2))
    np.testing.assert_array_equal(_convert(10, x), np.stack([-x[1::2], x[::2]], 1).ravel())


def test_folds() -> None:
    x = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    added = x.copy()
    while len(added) > 1:  # the upper half to the lower: the order is part of the contract
        added = added[: len(added) // 2] + added[len(added) // 2 :]
    assert _folds(x.ctypes.data) == (added[0], x.max())

"""Bound calls cut their views to each step; native rows lie in their tables as the ABI says."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import torch

from llmcore.dims import STEP_DIMS, R, S, Shape, T
from llmcore.graph.segments import BoundCall, CallSegment, NativeRow, NativeSegment, bits
from llmcore.native import HEADER
from llmcore.registry.operand import Operand

SLOTS = {dim.name: i for i, dim in enumerate(STEP_DIMS)}


def operand(name: str, shape: Shape, *whole: int) -> Operand:
    return Operand(name, np.zeros(whole, np.float32), shape)


class Recorder:
    """A kernel that keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, *args: Any, **attrs: Any) -> None:
        self.calls.append((args, attrs))

    @property
    def shapes(self) -> list[Any]:
        """Of the last call's arguments."""
        return [None if each is None else tuple(each.shape) for each in self.calls[-1][0]]


OPERANDS = [
    operand("x", (T, 4), 6, 4),
    operand("weight", (5, 4), 5, 4),
    None,
    operand("block_tables", (S, 3), 2, 3),
    operand("rows", (R,), 4),
    operand("kv", (), 7, 2),
]


def bound(view: str, block: np.ndarray) -> tuple[BoundCall, Recorder]:
    kernel = Recorder()
    return BoundCall(kernel, OPERANDS, view, {"eps": 0.5}, block, SLOTS), kernel


@pytest.mark.parametrize("view", ["numpy", "torch"])
def test_leading_axes_follow_the_step(view: str) -> None:
    block = np.zeros(3, np.int64)
    call, kernel = bound(view, block)
    for tokens, seqs, rows in ((6, 2, 4), (1, 1, 1), (3, 2, 0), (0, 0, 0), (6, 2, 4)):
        block[:] = (tokens, seqs, rows)
        call()
        assert kernel.shapes == [(tokens, 4), (5, 4), None, (seqs, 3), (rows,), (7, 2)]
        assert kernel.calls[-1][1] == {"eps": 0.5}
    kind = torch.Tensor if view == "torch" else np.ndarray
    assert all(isinstance(each, kind) for each in kernel.calls[-1][0] if each is not None)


def test_views_are_cut_only_when_sizes_change() -> None:
    block = np.array([3, 1, 1], np.int64)
    call, kernel = bound("numpy", block)
    call()
    call()
    block[2] = 2
    call()
    first, second, third = (args for args, _ in kernel.calls)
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert third[4] is not second[4] and third[4].shape == (2,)


@pytest.mark.parametrize("view", ["numpy", "torch"])
def test_views_are_the_memory_itself(view: str) -> None:
    block = np.array([2, 1, 1], np.int64)
    call, kernel = bound(view, block)
    call()
    kernel.calls[0][0][0][1, 2] = 7
    assert OPERANDS[0] is not None and OPERANDS[0].array[1, 2] == 7
    OPERANDS[0].array[1, 2] = 0


def test_calls_run_in_order() -> None:
    block = np.zeros(3, np.int64)
    seen: list[int] = []
    calls = [BoundCall(lambda i=i: seen.append(i), [], "numpy", {}, block, SLOTS) for i in range(4)]  # type: ignore[misc]
    segment = CallSegment([5, 6, 7, 8], calls)
    segment.run()
    assert seen == [0, 1, 2, 3] and (segment.kind, segment.nodes) == ("calls", [5, 6, 7, 8])
    segment.run_node(2)
    assert seen == [0, 1, 2, 3, 2]


class FakePool:
    """Keeps the tables that it is given; its scratch is a number."""

    scratch = 12345

    def __init__(self) -> None:
        self.ran: list[tuple[int, int]] = []

    def run(self, table: np.ndarray) -> None:
        self.run_at(table.ctypes.data, len(table))

    def run_at(self, address: int, rows: int) -> None:
        self.ran.append((address, rows))


def words(address: int, count: int) -> list[int]:
    """int64 words as a kernel reads them."""
    import ctypes

    return list((ctypes.c_int64 * count).from_address(address))


def test_native_tables() -> None:
    rows = [NativeRow(111, [1, 2, 3]), NativeRow(222, []), NativeRow(333, [-(2**63), 2**63 - 1])]
    pool = FakePool()
    segment = NativeSegment(pool, [0, 1, 2], rows)  # type: ignore[arg-type]
    assert segment.table[:, 0].tolist() == [111, 222, 333]
    counters = []
    for row, (_, address) in zip(rows, segment.table.tolist(), strict=True):
        counter, scratch, *operands = words(address, HEADER + len(row.operands))
        assert (scratch, operands) == (pool.scratch, list(row.operands))
        assert counter % 64 == 0 and words(counter, 1) == [0]
        counters.append(counter)
    assert np.diff(counters).tolist() == [64, 64]  # a cache line each: threads that claim do not disturb others
    segment.run()
    segment.run()
    segment.run_node(1)
    whole = segment.table.ctypes.data, 3
    assert pool.ran == [whole, whole, (segment.table[1:].ctypes.data, 1)]


def test_a_node_may_have_stages() -> None:
    pool = FakePool()
    rows = [NativeRow(111, [7]), NativeRow(222, [8, 9], before=[220, 221])]
    segment = NativeSegment(pool, [0, 1], rows)  # type: ignore[arg-type]
    assert segment.table[:, 0].tolist() == [111, 220, 221, 222]
    calls = [
        words(address, HEADER + count) for (_, address), count in zip(segment.table.tolist(), (1, 2, 2, 2), strict=True)
    ]
    assert [operands for _, _, *operands in calls] == [[7], [8, 9], [8, 9], [8, 9]]
    assert len({counter for counter, *_ in calls}) == 4
    segment.run_node(1)
    segment.run_node(0)
    assert pool.ran == [(segment.table[1:].ctypes.data, 3), (segment.table.ctypes.data, 1)]
    assert segment.kind == "native"


@pytest.mark.parametrize("value", [0, 1, -5, 2**40, True, False, np.int32(7), np.int64(-7), np.bool_(True)])
def test_bits_of_integers(value: Any) -> None:
    assert bits(value) == int(value) and type(bits(value)) is int


@pytest.mark.parametrize("value", [0.0, 1e-5, -2.5, float("inf"), np.float64(0.125), np.float32(0.1)])
def test_bits_of_floats(value: Any) -> None:
    assert struct.pack("<q", bits(value)) == struct.pack("<d", float(value))

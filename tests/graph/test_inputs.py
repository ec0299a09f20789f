"""The arrays of a step keep their place; the block says how much of them counts."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from llmcore.graph.inputs import Limits, StepInputs, input_shapes


def test_arrays_have_the_largest_size() -> None:
    limits = Limits(tokens=7, seqs=3, rows=2, blocks=5)
    inputs = StepInputs(input_shapes(limits.blocks), limits.sizes)
    assert {name: array.shape for name, array in inputs.arrays.items()} == {
        "token_ids": (7,),
        "positions": (7,),
        "slots": (7,),
        "query_starts": (3,),
        "query_lens": (3,),
        "kv_lens": (3,),
        "block_tables": (3, 5),
        "rows": (2,),
    }
    assert {array.dtype for array in inputs.arrays.values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize(("dim", "value"), [("T", 7), ("S", 3), ("R", 2)])
def test_addresses_of_the_sizes(dim: str, value: int) -> None:
    inputs = StepInputs(input_shapes(1), {"T": 9, "S": 9, "R": 9})
    address = inputs.address_of(dim)
    inputs.set_sizes(tokens=7, seqs=3, rows=2)
    assert ctypes.c_int64.from_address(address).value == value
    assert inputs.address_of(dim) == address

"""The cost model against bytes and operations counted by hand."""

from __future__ import annotations

import pytest

from llmcore import ops
from llmcore_tools.bench.costs import OPERATIONS, Attended, Call, Cost, cost, operations


def call(name: str, dims: dict[str, int], *absent: str, **more: object) -> Call:
    """A call with all of its tensors but those named ``absent``."""
    op = ops.get(name)
    present = frozenset(param.name for param in op.of("input", "weight", "state")) - set(absent)
    return Call(op, dims, present=present, **more)  # type: ignore[arg-type]


def test_a_linear_layer_reads_its_weight_as_it_is_packed() -> None:
    one = call("linear", {"M": 2, "K": 32, "N": 64}, "bias", weights={"weight": 1280})
    assert cost(one) == Cost(reads=2 * 32 * 4 + 1280, writes=2 * 64 * 4, operations=2 * 2 * 32 * 64)
    biased = call("linear", {"M": 2, "K": 32, "N": 64}, weights={"weight": 1280})
    assert cost(biased) == Cost(2 * 32 * 4 + 1280 + 64 * 4, 2 * 64 * 4, 2 * 2 * 32 * 64 + 2 * 64)


def test_a_table_is_read_by_the_row() -> None:
    one = call("embedding", {"T": 3, "V": 100, "D": 32}, weights={"weight": 3400})
    assert cost(one) == Cost(reads=3 * 4 + 3 * 34, writes=3 * 32 * 4, operations=0)
    gather = call("gather", {"T": 10, "D": 8, "R": 2})
    assert cost(gather) == Cost(reads=2 * 8 * 4 + 2 * 4, writes=2 * 8 * 4, operations=0)
    rope = call("rope", {"T": 2, "D": 64, "P": 500, "F": 8}, attrs={"head_dim": 16, "interleaved": False})
    assert cost(rope) == Cost(2 * 64 * 4 + 2 * 4 + 2 * (2 * 8 * 4), 2 * 64 * 4, 6 * 2 * 8 * 4)


def test_nothing_is_looked_up_in_an_empty_step() -> None:
    assert cost(call("embedding", {"T": 0, "V": 0, "D": 32})) == Cost(0, 0, 0)


def test_element_wise_ops() -> None:
    assert cost(call("add", {"M": 3, "D": 10})) == Cost(2 * 120, 120, 30)
    assert cost(call("rms_norm", {"M": 3, "D": 10, "C": 10}, attrs={"eps": 1e-5})) == Cost(120 + 40, 120, 120)
    assert cost(call("swiglu", {"M": 3, "F": 10})) == Cost(240, 120, 150)
    assert cost(call("argmax", {"R": 3, "V": 10})) == Cost(120, 12, 30)


def test_attention_counts_pairs_and_the_cache() -> None:
    attended = Attended.of([(5, 1), (0, 3)], token_bytes=100.0)
    assert (attended.cached, attended.pairs) == (6 + 3, 6 + (1 + 2 + 3))
    attrs = {"head_dim": 4, "kv_heads": 1, "page_size": 16, "scale": 0.5}
    one = call("attention", {"T": 4, "D": 8, "S": 2, "B": 3}, attrs=attrs, attended=attended)
    indices = 3 * 2 * 4 + 2 * 3 * 4
    assert cost(one) == Cost(4 * 8 * 4 + indices + 9 * 100, 4 * 8 * 4, 4 * 8 * 12)
    write = call("kv_write", {"T": 4, "G": 8}, attrs={"head_dim": 4, "page_size": 16}, attended=attended)
    assert cost(write) == Cost(2 * 4 * 8 * 4 + 4 * 4, 4 * 100, 0)


def test_a_fused_op_computes_what_its_parts_do_and_keeps_what_passes_between_them() -> None:
    one = call("gate_up_swiglu", {"M": 2, "K": 32, "F": 64}, weights={"gate": 1000, "up": 2000})
    assert cost(one) == Cost(2 * 32 * 4 + 3000, 2 * 64 * 4, 2 * (2 * 2 * 32 * 64) + 5 * 2 * 64)
    one = call("add_rms_norm", {"M": 2, "D": 8, "C": 8}, attrs={"eps": 1e-5})
    assert cost(one) == Cost(2 * 64 + 32, 2 * 64, 2 * 8 + 4 * 2 * 8)
    one = call("linear_add", {"M": 2, "K": 32, "N": 64}, weights={"weight": 1280})
    assert cost(one).operations == 2 * 2 * 32 * 64 + 2 * 64 + 2 * 64, "the product, the bias, the sum"


def test_the_widest_fused_op() -> None:
    dims = {"T": 3, "K": 32, "D": 64, "G": 16, "C": 16, "P": 40, "F": 8}
    attrs = {"head_dim": 16, "page_size": 4, "interleaved": False, "eps": 1e-6}
    attended = Attended(token_bytes=128.0)
    absent = ("bq", "bk", "bv", "nq", "nk")
    weights = {"wq": 100, "wk": 20, "wv": 30}
    one = call("qkv_rope_kv_write", dims, *absent, weights=weights, attrs=attrs, attended=attended)
    products = 2 * 3 * 32 * (64 + 16 + 16)
    turns = 6 * 3 * 8 * (4 + 1)
    assert cost(one) == Cost(3 * 32 * 4 + 2 * 3 * 4 + 150 + 2 * 3 * 8 * 4, 3 * 64 * 4 + 3 * 128, products + turns)
    normed = call("qkv_rope_kv_write", dims, "bq", "bk", "bv", weights=weights, attrs=attrs, attended=attended)
    assert operations(normed) == products + turns + 4 * 3 * (64 + 16)


@pytest.mark.parametrize("name", ops.NAMES)
def test_every_op_of_the_contract_has_a_cost(name: str) -> None:
    op = ops.get(name)
    assert op.cases is not None
    for case in op.cases():
        present = {param.name for param in op.of("input", "weight", "state") if not param.optional}
        found = cost(Call(op, case.dims, attrs=case.attrs, present=present.union(case.present)))
        assert found.nbytes >= 0 and found.operations >= 0


def test_rules_are_those_of_ops_that_exist() -> None:
    assert set(OPERATIONS) <= set(ops.NAMES)
    assert all(ops.get(name).decompose is None for name in OPERATIONS), "a fused op has no rule of its own"


def test_costs_add_up() -> None:
    total = Cost(1, 2, 3) + Cost(10, 20, 30)
    assert total == Cost(11, 22, 33) and total.nbytes == 33 and total.intensity == 1.0
    assert Cost().intensity == 0.0

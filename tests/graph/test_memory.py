"""The memory plan: nothing alive is overwritten, and the arena is hardly larger than the largest live set."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from helpers import configs
from helpers.graphs import KV, SIZES, WIDTH, interpret, random_graphs, random_tensors, small_graph, weight
from llmcore.dims import T
from llmcore.engine.sizes import Sizes
from llmcore.engine.step_graph import model_graph, with_argmax
from llmcore.graph.fusion import fuse
from llmcore.graph.graph import Graph, Value
from llmcore.graph.memory import ALIGNMENT, Plan, nbytes_of, plan
from llmcore.graph.program import HERE
from llmcore.model_spec import ModelSpec
from llmcore_llama.family import llama
from llmcore_qwen.family import qwen

LINE = 4 * SIZES["T"] * WIDTH  # bytes of one [T, 8] value at SIZES: 160, so 192 with its padding
PADDED = 192


def planned(graph: Graph) -> Plan:
    return plan(graph, SIZES, HERE.dtypes)


def linear(g: Graph, x: Value, name: str) -> Value:
    made: Value = g.op("linear", x=x, weight=weight(name))
    return made


def lifetimes(graph: Graph) -> dict[Value, tuple[int, int]]:
    """Temporary value → the nodes that make it and that read it last."""
    found: dict[Value, tuple[int, int]] = {}
    for i, node in enumerate(graph.nodes):
        for value in node.outputs.values():
            found[value] = (i, i)
        for value in node.args.values():
            if value in found:
                found[value] = (found[value][0], i)
    return {value: life for value, life in found.items() if value not in graph.outputs.values()}


def takes_over(graph: Graph, heir: Value, old: Value, place: int) -> bool:
    """Whether node ``place`` may write ``heir`` over its argument ``old``."""
    node = graph.nodes[place]
    names = [name for name, value in node.args.items() if value is old]
    output = next((name for name, value in node.outputs.items() if value is heir), "")
    return len(names) == 1 and names[0] in node.op.inplace.get(output, ())


def collisions(graph: Graph, layout: Plan) -> Iterator[tuple[str, str]]:
    """Pairs of values that share bytes while both are alive."""
    lives = lifetimes(graph)
    assert lives.keys() == layout.offsets.keys()
    for (a, (a_first, a_last)), (b, (b_first, b_last)) in combinations(lives.items(), 2):
        a_start, b_start = layout.offsets[a], layout.offsets[b]
        if a_start + nbytes_of(a.shape, SIZES, 4) <= b_start or b_start + nbytes_of(b.shape, SIZES, 4) <= a_start:
            continue
        if a_last < b_first or b_last < a_first:
            continue
        handed_on = (a_last == b_first and takes_over(graph, b, a, b_first)) or (
            b_last == a_first and takes_over(graph, a, b, a_first)
        )
        if not handed_on:
            yield a.name, b.name


@settings(max_examples=100, deadline=None)
@given(random_graphs())
def test_no_live_values_overlap(graph: Graph) -> None:
    layout = planned(graph)
    assert not list(collisions(graph, layout))
    assert all(offset % ALIGNMENT == 0 and offset >= 0 for offset in layout.offsets.values())
    ends = [layout.offsets[value] + nbytes_of(value.shape, SIZES, 4) for value in layout.offsets]
    assert layout.nbytes == max(ends, default=0)


@settings(max_examples=100, deadline=None)
@given(random_graphs())
def test_values_survive_in_the_arena(graph: Graph) -> None:
    """Run with every planned value in its place alone, before and after fusion."""
    tensors = random_tensors(graph)
    expected = interpret(graph, tensors)
    for accept in (lambda node, parts: False, lambda node, parts: True):
        fuse(graph, accept)
        layout = planned(graph)
        memory = np.full(layout.nbytes, 0xFF, np.uint8)  # NaN wherever nothing was written
        for name, value in interpret(graph, tensors, (layout, memory)).items():
            torch.testing.assert_close(value, expected[name])


@settings(max_examples=100, deadline=None)
@given(random_graphs())
def test_lower_bound(graph: Graph) -> None:
    """At least what must lie there between two nodes, at most the plan; and the plan is near it."""
    layout, lives = planned(graph), lifetimes(graph)
    between = [
        sum(nbytes_of(value.shape, SIZES, 4) for value, (first, last) in lives.items() if first < i <= last)
        for i in range(len(graph.nodes))
    ]
    assert max(between, default=0) <= layout.lower_bound <= layout.nbytes <= layout.total
    assert layout.nbytes <= 1.5 * layout.lower_bound


def test_chain_reuses_two_places() -> None:
    g = small_graph()
    x = g.input("x")
    for i in range(6):
        x = linear(g, x, f"w{i}")
    g.outputs = {"y": linear(g, x, "last")}
    layout = planned(g)
    assert layout.nbytes == layout.lower_bound == 2 * PADDED
    assert layout.total == 6 * PADDED and layout.reuse == 3.0


def test_element_wise_ops_need_one_place() -> None:
    g = small_graph()
    x = linear(g, g.input("x"), "w")
    for _ in range(4):
        x = g.op("add", a=x, b=g.input("z"))
    g.outputs = {"y": linear(g, x, "v")}
    assert planned(g).nbytes == PADDED


def test_either_side_of_a_sum_may_be_taken_over() -> None:
    g = small_graph()
    kept, dying = linear(g, g.input("x"), "w"), linear(g, g.input("z"), "v")
    total = g.op("add", a=kept, b=dying)
    g.outputs = {"y": g.op("swiglu", gate=kept, up=total)}
    layout = planned(g)
    assert layout.offsets[total] == layout.offsets[dying] != layout.offsets[kept]


@pytest.mark.parametrize("case", ["read later", "read twice", "an output", "an input", "of another size"])
def test_not_taken_over(case: str) -> None:
    g = small_graph()
    x = linear(g, g.input("x"), "w")
    if case == "an input":
        y = g.op("add", a=g.input("x"), b=g.input("z"))
        x = g.input("x")
    elif case == "read twice":
        y = g.op("add", a=x, b=x)  # a kernel might read the second after it has written the first
    elif case == "of another size":
        y = g.op("gather", x=x, rows=g.input("rows"))
    else:
        y = g.op("add", a=x, b=g.input("z"))
    g.outputs = {"last": g.op("linear", x=y, weight=weight("v"))}
    if case == "an output":
        g.outputs["x"] = x
    if case == "read later":
        g.outputs["again"] = linear(g, x, "u")
    offsets = planned(g).offsets
    assert y in offsets and offsets.get(x) != offsets[y]


def test_only_temporaries_are_planned() -> None:
    g = small_graph()
    x = linear(g, g.input("x"), "w")
    g.op("kv_write", k=x, v=x, slots=g.input("slots"), kv=KV, head_dim=WIDTH, page_size=4)
    g.outputs = {"y": linear(g, x, "v")}
    assert set(planned(g).offsets) == {x}


def test_value_that_nobody_reads_has_a_place_while_it_is_written() -> None:
    g = small_graph()
    x = linear(g, g.input("x"), "w")
    total, y = g.op("add_rms_norm", a=x, b=g.input("z"), weight=weight("n", WIDTH), eps=1e-5)
    g.outputs = {"y": y}
    layout = planned(g)
    assert layout.offsets[total] == layout.offsets[x] and layout.nbytes == PADDED


def test_empty_graph() -> None:
    layout = planned(small_graph())
    assert (layout.nbytes, layout.lower_bound, layout.reuse) == (0, 0, 1.0)


@pytest.mark.parametrize(
    ("shape", "nbytes"), [((T, 8), PADDED), ((T, 16), 320), ((3,), 64), ((0, 7), 64), ((), 64), ((16, 1), 64)]
)
def test_sizes_are_whole_cache_lines(shape: tuple[int, ...], nbytes: int) -> None:
    assert nbytes_of(shape, SIZES, 4) == nbytes


SPECS = {
    "llama2": llama(configs.LLAMA_2_7B),
    "llama3.1": llama(configs.LLAMA_3_1_8B),
    "llama3.2": llama(configs.LLAMA_3_2_1B),
    "smollm2": llama(configs.SMOLLM2_135M),
    "qwen2.5": qwen(configs.QWEN2_5_0_5B),
    "qwen3": qwen(configs.QWEN3_0_6B),
}
STEPS = ((1, 1, 1), (8, 8, 8), (64, 8, 64), (512, 8, 64), (2048, 64, 64))  # tokens, sequences, rows


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_arena_of_whole_models(spec: ModelSpec, step: tuple[int, int, int]) -> None:
    tokens, seqs, rows = step
    size = dict(zip(("T", "S", "R"), step, strict=True))
    graph = model_graph(spec, Sizes(tokens, seqs, rows, 128, 16, 8))
    for variant in (graph, with_argmax(graph)):
        for wanted in ((), ("add_rms_norm",), ("linear_add", "gate_up_swiglu"), ("qkv_rope_kv_write", "add_rms_norm")):
            rewritten = variant.fork()
            fuse(rewritten, lambda node, parts, wanted=wanted: node.op.name in wanted)  # type: ignore[misc]
            layout = plan(rewritten, size, HERE.dtypes)
            assert layout.lower_bound <= layout.nbytes <= 1.10 * layout.lower_bound
            assert layout.reuse > spec.layers / 2 or "ids" in variant.outputs  # whose logits lie in the arena


def test_a_workspace_is_there_for_its_node_alone() -> None:
    """It shares bytes with values of other nodes, never with those of its own."""
    made = small_graph()
    plain = planned(made)
    for place, node in enumerate(made.nodes):
        layout = plan(made, SIZES, HERE.dtypes, {place: 1000})
        begin, end = layout.workspaces[place], layout.workspaces[place] + 1000
        for value in set(node.values()) & layout.offsets.keys():
            at = layout.offsets[value]
            assert at + nbytes_of(value.shape, SIZES, 4) <= begin or at >= end
        assert layout.total == plain.total + 1024
        assert plain.lower_bound <= layout.lower_bound <= layout.nbytes <= plain.nbytes + 1024

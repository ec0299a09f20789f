"""Where fused ops are put, where they must not be, and that they never change what a graph computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import configs
from helpers.graphs import KV, WIDTH, interpret, op_names, random_graphs, random_tensors, small_graph, weight
from llmcore import ops
from llmcore.engine.sizes import Sizes
from llmcore.engine.step_graph import model_graph, with_argmax
from llmcore.graph.fusion import fuse
from llmcore.graph.graph import Graph, Node, Value
from llmcore.graph.pattern import patterns
from llmcore.layers.rope import RoPE
from llmcore.model_spec import RopeSpec
from llmcore_llama.family import llama
from llmcore_qwen.family import qwen

CACHE: dict[str, Any] = {"kv": KV, "head_dim": WIDTH, "page_size": 4}


def fused(graph: Graph, *names: str) -> list[str]:
    """The ops of ``graph`` after fusing those of the given names, or all."""
    fuse(graph, lambda node, parts: not names or node.op.name in names)
    return op_names(graph)


def norm(g: Graph, x: Value, name: str = "n", eps: float = 1e-5) -> Value:
    made: Value = g.op("rms_norm", x=x, weight=weight(name, WIDTH), eps=eps)
    return made


def linear(g: Graph, x: Value, name: str, bias: bool = False) -> Value:
    made: Value = g.op("linear", x=x, weight=weight(name), bias=weight(f"{name}.bias", WIDTH) if bias else None)
    return made


def test_add_and_norm() -> None:
    g = small_graph()
    x = g.input("x")
    total = g.op("add", a=x, b=g.input("z"))
    y = norm(g, total)
    g.outputs = {"y": y, "total": total}
    assert fused(g) == ["add_rms_norm"]
    (node,) = g.nodes
    assert node.args["a"] is x and node.attrs == {"eps": 1e-5} and node.dims["D"] == WIDTH
    assert node.outputs == {"total": total, "y": y}  # the same values: whoever read them still does


def test_two_norms_of_one_sum() -> None:
    """The sum is a result of the fused op, so a second reader after it is fine."""
    g = small_graph()
    total = g.op("add", a=g.input("x"), b=g.input("z"))
    g.outputs = {"y": norm(g, total, "n"), "w": norm(g, total, "m")}
    assert fused(g) == ["add_rms_norm", "rms_norm"]


def test_result_that_is_read_too_early() -> None:
    """Between the two parts, something reads the sum: the fused op would run after it."""
    g = small_graph()
    total = g.op("add", a=g.input("x"), b=g.input("z"))
    read = linear(g, total, "w")
    g.outputs = {"y": norm(g, total), "read": read}
    assert fused(g, "add_rms_norm") == ["add", "linear", "rms_norm"]


def test_inner_value_that_is_used_elsewhere() -> None:
    g = small_graph()
    y = linear(g, g.input("x"), "w")
    z = g.op("add", a=g.input("z"), b=y)
    g.outputs = {"again": linear(g, y, "v"), "z": z}
    assert fused(g) == ["linear", "add", "linear"]


def test_inner_value_that_is_an_output() -> None:
    g = small_graph()
    y = linear(g, g.input("x"), "w")
    g.outputs = {"z": g.op("add", a=g.input("z"), b=y), "y": y}
    assert fused(g) == ["linear", "add"]


def test_inner_value_that_is_also_an_argument() -> None:
    """``y + y``: the residual is what the linear makes, and nobody else would make it."""
    g = small_graph()
    y = linear(g, g.input("x"), "w")
    g.outputs = {"z": g.op("add", a=y, b=y)}
    assert fused(g) == ["linear", "add"]


@pytest.mark.parametrize("bias", [False, True])
def test_linear_and_residual(bias: bool) -> None:
    g = small_graph()
    y = linear(g, g.input("x"), "w", bias)
    g.outputs = {"z": g.op("add", a=g.input("z"), b=y)}
    assert fused(g) == ["linear_add"]
    assert ("bias" in g.nodes[0].args) == bias


def test_sides_of_the_residual() -> None:
    """The pattern is residual + linear, in this order: the one in which our layers write it."""
    g = small_graph()
    g.outputs = {"z": g.op("add", a=linear(g, g.input("x"), "w"), b=g.input("z"))}
    assert fused(g) == ["linear", "add"]


def test_gate_and_up() -> None:
    g = small_graph()
    x = g.input("x")
    g.outputs = {"y": g.op("swiglu", gate=linear(g, x, "gate"), up=linear(g, x, "up"))}
    assert fused(g) == ["gate_up_swiglu"]
    assert {name: value.name for name, value in g.nodes[0].args.items()} == {"x": "x", "gate": "gate", "up": "up"}


def test_gate_and_up_of_different_inputs() -> None:
    g = small_graph()
    g.outputs = {"y": g.op("swiglu", gate=linear(g, g.input("x"), "gate"), up=linear(g, g.input("z"), "up"))}
    assert fused(g) == ["linear", "linear", "swiglu"]


def test_gate_with_a_bias_is_another_op() -> None:
    g = small_graph()
    x = g.input("x")
    g.outputs = {"y": g.op("swiglu", gate=linear(g, x, "gate", bias=True), up=linear(g, x, "up"))}
    assert fused(g) == ["linear", "linear", "swiglu"]


def test_one_projection_as_gate_and_up() -> None:
    g = small_graph()
    y = linear(g, g.input("x"), "w")
    g.outputs = {"y": g.op("swiglu", gate=y, up=y)}
    tensors = random_tensors(g)
    before = interpret(g, tensors)
    fused(g)
    torch.testing.assert_close(interpret(g, tensors), before)


def attention_inputs(g: Graph, *, norms: bool = False, bias: bool = False, between: str = "") -> Value:
    """Projections, rope and the write into the cache; ``between`` names what comes before the write."""
    rope = RoPE.of(RopeSpec(WIDTH), WIDTH, 8)
    x = g.input("x")
    q, k, v = (linear(g, x, name, bias) for name in "qkv")
    if norms:
        q, k = norm(g, q, "nq"), norm(g, k, "nk")
    q, k = rope(g, q), rope(g, k)
    if between == "write":
        g.op("kv_write", k=v, v=v, slots=g.input("slots"), **CACHE)
    if between == "other eps":
        g.op("kv_write", k=norm(g, k, "nq", eps=1e-3), v=v, slots=g.input("slots"), **CACHE)
    g.op("kv_write", k=k, v=v, slots=g.input("slots"), **CACHE)
    return q


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_projections_rope_and_cache(norms: bool, bias: bool) -> None:
    g = small_graph()
    g.outputs = {"q": attention_inputs(g, norms=norms, bias=bias)}
    tensors = random_tensors(g)
    before = interpret(g, tensors)
    assert fused(g) == ["qkv_rope_kv_write"]
    node = g.nodes[0]
    assert ("bq" in node.args, "nq" in node.args) == (bias, norms)
    assert [node.args[name].name for name in ("wq", "wk", "wv")] == ["q", "k", "v"]
    assert node.attrs["eps"] == (1e-5 if norms else 0)
    torch.testing.assert_close(interpret(g, tensors), before)


def test_another_write_to_the_cache_in_between() -> None:
    g = small_graph()
    g.outputs = {"q": attention_inputs(g, between="write")}
    tensors = random_tensors(g)
    before = interpret(g, tensors)
    fused(g)
    torch.testing.assert_close(interpret(g, tensors), before)


def test_cache_is_read_between_write_and_rope() -> None:
    """The write comes early, attention over it, then rope of Q: fused, the write would come too late."""
    g = small_graph()
    rope = RoPE.of(RopeSpec(WIDTH), WIDTH, 8)
    x = g.input("x")
    q, k, v = (linear(g, x, name) for name in "qkv")
    g.op("kv_write", k=rope(g, k), v=v, slots=g.input("slots"), **CACHE)
    lens = {name: g.input(name) for name in ("query_starts", "query_lens", "kv_lens", "block_tables")}
    seen = g.op("attention", q=g.input("z"), **lens, **CACHE, kv_heads=1, scale=1.0)
    g.outputs = {"q": rope(g, q), "seen": seen}
    before = op_names(g)
    assert fused(g) == before


def test_attributes_must_agree() -> None:
    """Both norms of a fused projection have one eps; here they differ."""
    g = small_graph()
    rope = RoPE.of(RopeSpec(WIDTH), WIDTH, 8)
    x = g.input("x")
    q, k, v = (linear(g, x, name) for name in "qkv")
    q, k = rope(g, norm(g, q, "nq", eps=1e-5)), rope(g, norm(g, k, "nk", eps=1e-6))
    g.op("kv_write", k=k, v=v, slots=g.input("slots"), **CACHE)
    g.outputs = {"q": q}
    assert "qkv_rope_kv_write" not in fused(g)


def test_ropes_of_different_tables() -> None:
    g = small_graph()
    x, slots = g.input("x"), g.input("slots")
    q, k, v = (linear(g, x, name) for name in "qkv")
    q = RoPE.of(RopeSpec(WIDTH), WIDTH, 8)(g, q)
    k = RoPE.of(RopeSpec(WIDTH, theta=77.0), WIDTH, 8)(g, k)
    g.op("kv_write", k=k, v=v, slots=slots, **CACHE)
    g.outputs = {"q": q}
    assert "qkv_rope_kv_write" not in fused(g)


def test_greedy_classifier() -> None:
    g = small_graph()
    logits = linear(g, g.input("wanted"), "head")
    g.outputs = {"logits": logits}
    greedy = with_argmax(g)
    assert fused(greedy) == ["classifier_argmax"] and list(greedy.outputs) == ["ids"]
    assert op_names(g) == ["linear"] and g.outputs == {"logits": logits}
    both = with_argmax(g)
    both.outputs["logits"] = logits
    assert fused(both) == ["linear", "argmax"]  # somebody wants the logits too


def test_refused_matches_stay() -> None:
    asked: list[tuple[str, list[str]]] = []

    def accept(node: Node, parts: list[Node]) -> bool:
        asked.append((node.op.name, [part.op.name for part in parts]))
        return False

    g = small_graph()
    g.outputs = {"y": norm(g, g.op("add", a=g.input("x"), b=linear(g, g.input("x"), "w")))}
    before = list(g.nodes)
    fuse(g, accept)
    assert g.nodes == before
    assert asked == [("linear_add", ["linear", "add"]), ("add_rms_norm", ["add", "rms_norm"])]


def test_parts_belong_to_one_fused_op_only() -> None:
    """The sum could go with the norm after it or with the linear before it; the op declared first takes it."""
    g = small_graph()
    g.outputs = {"y": norm(g, g.op("add", a=g.input("x"), b=linear(g, g.input("x"), "w")))}
    assert fused(g.fork()) == ["linear_add", "rms_norm"]
    assert fused(g.fork(), "add_rms_norm") == ["linear", "add_rms_norm"]


def test_path_is_what_the_parts_share() -> None:
    g = small_graph()
    with g.scope("model.layers.0.mlp.down_proj"):
        y = linear(g, g.input("x"), "w")
    with g.scope("model.layers.0"):
        g.outputs = {"z": g.op("add", a=g.input("z"), b=y)}
    fused(g)
    assert g.nodes[0].path == "model.layers.0"


def test_every_fused_op_has_patterns() -> None:
    fused_ops = [spec for spec in ops.OPS.values() if spec.fused]
    assert len(fused_ops) >= 5
    for spec in fused_ops:
        found = list(patterns(spec))
        assert found and all(len(pattern.parts) > 1 for pattern in found)
        arguments = [frozenset(pattern.holes) for pattern in found]
        assert len(set(arguments)) == len(arguments)


SPECS = {
    "llama2": llama(configs.LLAMA_2_7B),
    "smollm2": llama(configs.SMOLLM2_135M),
    "qwen2.5": qwen(configs.QWEN2_5_0_5B),
    "qwen3": qwen(configs.QWEN3_8B),
}


@pytest.mark.parametrize("name", SPECS)
def test_whole_models(name: str) -> None:
    spec = SPECS[name]
    graph = model_graph(spec, Sizes(16, 2, 4, 64, 16, 8))
    found = fused(graph)
    for wanted in ("rms_norm_qkv_rope_kv_write", "attention", "rms_norm_gate_up_swiglu"):
        assert found.count(wanted) == spec.layers
    assert found.count("linear_add") == 2 * spec.layers
    assert set(found) == {"embedding", "gather", "rms_norm", "linear", "attention", "linear_add"} | {
        *("rms_norm_qkv_rope_kv_write", "rms_norm_gate_up_swiglu")
    }
    assert found.count("rms_norm") == 1
    layers = [value.name for node in graph.nodes for key, value in node.args.items() if key == "kv"]
    assert layers == [f"kv.{i}" for i in range(spec.layers) for _ in range(2)]  # each layer its own cache, in order


@settings(max_examples=150, deadline=None)
@given(
    graph=random_graphs(), wanted=st.sets(st.sampled_from([s.name for s in ops.OPS.values() if s.fused]), min_size=1)
)
def test_fusion_never_changes_what_is_computed(graph: Graph, wanted: set[str]) -> None:
    tensors = random_tensors(graph)
    before = interpret(graph, tensors)
    fused(graph, *wanted)
    after = interpret(graph, tensors)
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


def test_a_fork_is_fused_alone() -> None:
    g = small_graph()
    g.outputs = {"y": norm(g, g.op("add", a=g.input("x"), b=g.input("z")))}
    first, second = g.fork(), g.fork()
    assert fused(first) == ["add_rms_norm"]
    assert op_names(g) == ["add", "rms_norm"]
    assert fused(second) == ["add_rms_norm"]

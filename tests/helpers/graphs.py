"""Graphs made by hand or at random, and what they compute: each node by its op's torch reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from hypothesis import strategies as st

from llmcore.dims import R, T, concrete
from llmcore.graph.graph import Graph, Value
from llmcore.graph.inputs import input_shapes
from llmcore.graph.memory import Plan
from llmcore.layers.base import Const, State, Weight

WIDTH = 8
SIZES = {"T": 5, "S": 2, "R": 3}
KV = State(0, 1, WIDTH)
Tensors = Mapping[str, torch.Tensor]


def small_graph() -> Graph:
    """No nodes yet; inputs ``x`` and ``z`` [T, 8], ``wanted`` [R, 8], and those of a step."""
    own = {"x": ((T, WIDTH), "act"), "z": ((T, WIDTH), "act"), "wanted": ((R, WIDTH), "act")}
    return Graph({**own, **input_shapes(2)})


def weight(name: str, *shape: int) -> Weight:
    """A weight of the given shape, [8, 8] unless told."""
    return Weight(name, shape or (WIDTH, WIDTH))


def op_names(graph: Graph) -> list[str]:
    """The ops of ``graph`` in order."""
    return [node.op.name for node in graph.nodes]


def random_tensors(graph: Graph, seed: int = 0) -> dict[str, torch.Tensor]:
    """Values for every input and weight that the nodes of ``graph`` read, at :data:`SIZES`; by name."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    values = {v.name: v for node in graph.nodes for v in node.args.values() if v.kind in ("input", "weight")}
    for name in sorted(values):
        shape = concrete(values[name].shape, SIZES)
        if values[name].dtype == "i32":
            made[name] = torch.randint(0, 3, shape, generator=generator, dtype=torch.int32)
        else:
            made[name] = torch.randn(shape, generator=generator)
    return made


def interpret(graph: Graph, given: Tensors, arena: tuple[Plan, np.ndarray] | None = None) -> dict[str, torch.Tensor]:
    """The outputs of ``graph``.

    Args:
        given: inputs and weights by name.
        arena: a plan and its memory. Every planned value then lives there alone: one that another overwrites too early
            is read back wrong.
    """
    states: dict[Value, torch.Tensor] = {}
    known: dict[Value, torch.Tensor] = {}

    def read(value: Value) -> torch.Tensor:
        if isinstance(value.source, Const):
            return torch.from_numpy(value.source.array)
        if isinstance(value.source, State):
            return states.setdefault(value, torch.zeros(4, 2, 4, value.source.kv_heads, value.source.head_dim))
        return given[value.name] if value.kind in ("input", "weight") else known[value]

    for node in graph.nodes:
        arguments = {name: read(value) for name, value in node.args.items()}
        result = node.op.reference(**arguments, **node.attrs)
        results = result if isinstance(result, tuple) else (result,)
        for value, tensor in zip(node.outputs.values(), results, strict=False):
            known[value] = _stored(value, tensor, arena)
    return {name: known[value].clone() for name, value in graph.outputs.items()} | {
        value.name: state for value, state in states.items()
    }


def _stored(value: Value, tensor: torch.Tensor, arena: tuple[Plan, np.ndarray] | None) -> torch.Tensor:
    if arena is None or value not in arena[0].offsets:
        return tensor.clone()
    plan, memory = arena
    offset, count = plan.offsets[value], tensor.numel() * tensor.element_size()
    place = torch.from_numpy(memory[offset : offset + count]).view(tensor.dtype).view(tensor.shape)
    return place.copy_(tensor)


@st.composite
def random_graphs(draw: st.DrawFn, most: int = 14) -> Graph:
    """Graphs of element-wise ops, norms and linears over [T, 8], whose values are used again, late, twice or never."""
    g = small_graph()
    values = [g.input("x"), g.input("z")]

    def some() -> Value:
        return draw(st.sampled_from(values[-4:] if draw(st.booleans()) else values))

    for i in range(draw(st.integers(1, most))):
        kind = draw(st.sampled_from(("linear", "linear", "add", "add", "rms_norm", "swiglu", "kv_write")))
        if kind == "linear":
            bias = weight(f"b{i}", WIDTH) if draw(st.booleans()) else None
            made = g.op("linear", x=some(), weight=weight(f"w{draw(st.integers(0, 3))}"), bias=bias)
        elif kind == "add":
            made = g.op("add", a=some(), b=values[-1] if draw(st.booleans()) else some())
        elif kind == "rms_norm":
            made = g.op("rms_norm", x=some(), weight=weight(f"n{i}", draw(st.sampled_from((4, 8)))), eps=1e-5)
        elif kind == "swiglu":
            made = g.op("swiglu", gate=some(), up=some())
        else:
            g.op("kv_write", k=some(), v=some(), slots=g.input("slots"), kv=KV, head_dim=WIDTH, page_size=4)
            continue
        values.append(made)
    made_here = values[2:]
    if made_here:
        chosen = draw(st.lists(st.sampled_from(made_here), min_size=1, max_size=3, unique=True))
        g.outputs = {f"out{i}": value for i, value in enumerate(chosen)}
    return g

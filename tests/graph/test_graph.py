"""What a graph accepts, and what it remembers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers.graphs import KV, WIDTH, op_names, small_graph, weight
from llmcore.dims import R, T
from llmcore.errors import RegistryError
from llmcore.layers.base import Const


def test_op_names_its_result_and_its_place() -> None:
    g = small_graph()
    with g.scope("model.layers.3"), g.scope("model.layers.3.mlp"):
        y = g.op("linear", x=g.input("x"), weight=weight("up", 12, WIDTH))
    z = g.op("add", a=y, b=y)
    assert [(node.op.name, node.path) for node in g.nodes] == [("linear", "model.layers.3.mlp"), ("add", "")]
    assert y.shape == (T, 12) and y.dtype == "act" and y.kind == "temp" and y.name == "model.layers.3.mlp:y"
    assert z.shape == (T, 12)
    assert g.nodes[0].dims == {"M": T, "K": WIDTH, "N": 12}
    assert g.weights == {"up": (12, WIDTH)}


def test_op_without_output_and_with_two() -> None:
    g = small_graph()
    x = g.input("x")
    written = g.op("kv_write", k=x, v=x, slots=g.input("slots"), kv=KV, head_dim=WIDTH, page_size=4)
    assert written is None
    total, y = g.op("add_rms_norm", a=x, b=x, weight=weight("n", WIDTH), eps=1e-5)
    assert (total.shape, y.shape) == ((T, WIDTH), (T, WIDTH)) and total is not y


def test_a_weight_used_twice_is_one_value() -> None:
    g = small_graph()
    for _ in range(2):
        g.op("linear", x=g.input("x"), weight=weight("w"))
    first, second = (node.args["weight"] for node in g.nodes)
    assert first is second and list(g.weights) == ["w"]


def test_a_state_is_one_value_and_a_const_is_itself() -> None:
    g = small_graph()
    x = g.input("x")
    table = Const("cos", np.zeros((9, 4), np.float32))
    for _ in range(2):
        g.op("kv_write", k=x, v=x, slots=g.input("slots"), kv=KV, head_dim=WIDTH, page_size=4)
        g.op("rope", x=x, positions=g.input("positions"), cos=table, sin=table, head_dim=WIDTH, interleaved=False)
    assert g.nodes[0].args["kv"] is g.nodes[2].args["kv"]
    assert g.nodes[1].args["cos"] is g.nodes[3].args["cos"] and g.nodes[1].args["cos"].shape == (9, 4)


@pytest.mark.parametrize(
    ("op", "changes", "said"),
    [
        ("liner", {}, "no op 'liner'.*linear"),
        ("linear", {"weight": None}, "linear got x"),
        ("linear", {"wieght": weight("w")}, "got weight, wieght, x"),
        ("linear", {"eps": 1e-5}, "got eps"),
        ("linear", {"x": 3}, "x is a int"),
        ("linear", {"x": "token_ids"}, r"x: act\[M, K\] got token_ids, which is i32"),
        ("linear", {"weight": weight("w", 8)}, "shape"),
        ("linear", {"weight": weight("w", 8, 7)}, "dim K is 8 and 7"),
        ("linear", {"bias": weight("b", 7)}, "dim N is 8 and 7"),
        ("linear", {"weight": "x"}, r"weight: any\[N, K\] got x, which is act"),
        ("linear", {"x": KV}, "got kv.0, which is state"),
        ("rms_norm", {"weight": weight("n", WIDTH)}, "got weight, x"),
        ("gather", {"weight": None, "rows": "wanted"}, r"rows: i32\[R\] got wanted, which is act"),
    ],
)
def test_wrong_call(op: str, changes: dict[str, Any], said: str) -> None:
    """``linear(x, w)`` is right; ``changes`` make it wrong. Strings name inputs."""
    g = small_graph()
    arguments = {"x": "x", "weight": weight("w"), **changes}
    found = {name: g.input(value) if isinstance(value, str) else value for name, value in arguments.items()}
    with pytest.raises(RegistryError, match=f"(?s){said}"):
        g.op(op, **found)
    assert not g.nodes


def test_unknown_input_is_named() -> None:
    with pytest.raises(RegistryError, match=r"(?s)'position'.*positions"):
        small_graph().input("position")


def test_rows_and_tokens_do_not_mix() -> None:
    g = small_graph()
    with pytest.raises(RegistryError, match="dim M is T and R"):
        g.op("add", a=g.input("x"), b=g.input("wanted"))
    assert g.op("gather", x=g.input("x"), rows=g.input("rows")).shape == (R, WIDTH)


@pytest.mark.parametrize("second", [weight("w", 6, WIDTH), weight("w", WIDTH)])
def test_a_weight_has_one_shape_and_one_type(second: Any) -> None:
    g = small_graph()
    g.op("linear", x=g.input("x"), weight=weight("w"))
    with pytest.raises(RegistryError, match="weight w is used as"):
        if len(second.shape) == 2:
            g.op("linear", x=g.input("x"), weight=second)
        else:
            g.op("rms_norm", x=g.input("x"), weight=second, eps=1e-5)


def test_fork_grows_by_itself() -> None:
    g = small_graph()
    g.outputs["y"] = g.op("linear", x=g.input("x"), weight=weight("w"))
    other = g.fork()
    other.outputs["z"] = other.op("linear", x=g.outputs["y"], weight=weight("v"))
    assert op_names(g) == ["linear"] and op_names(other) == ["linear", "linear"]
    assert list(g.outputs) == ["y"] and list(g.weights) == ["w"]
    assert list(other.weights) == ["w", "v"] and other.nodes[0] is g.nodes[0]


def test_attributes_have_the_types_that_the_op_declares() -> None:
    g = small_graph()
    g.op("rms_norm", x=g.input("x"), weight=weight("w", WIDTH), eps=1)
    assert isinstance(g.nodes[0].attrs["eps"], float)  # its bits go into an operand table
    with pytest.raises(RegistryError, match="eps is a float"):
        g.op("rms_norm", x=g.input("x"), weight=weight("w", WIDTH), eps="small")

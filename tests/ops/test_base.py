"""Declaring ops: what a signature may say, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from llmcore import ops
from llmcore.dims import T
from llmcore.errors import RegistryError
from llmcore.ops.base import OPS, Param, op


def test_operands_stand_in_the_order_of_the_signature() -> None:
    spec = ops.get("qkv_rope_kv_write")
    names = [param.name for param in spec.params]
    assert names[:6] == ["x", "positions", "slots", "wq", "wk", "wv"]
    assert names[-4:] == ["cos", "sin", "kv", "q"]
    assert spec.dims == ("T", "K", "D", "G", "C", "P", "F")
    assert spec.attrs == ("head_dim", "page_size", "interleaved", "eps")
    assert spec.attr_types == {"head_dim": int, "page_size": int, "interleaved": bool, "eps": float}
    assert spec.fused
    assert not ops.get("linear").fused


def test_signature_reads_as_it_was_declared() -> None:
    assert ops.get("rms_norm").signature() == "rms_norm(x: act[M, D], weight: f32[C]; eps) -> y: act[M, D]"
    assert ops.get("kv_write").signature().endswith("kv: state; head_dim, page_size) -> ()")
    assert str(ops.get("linear").params[2]) == "bias?: f32[N]"


def test_dims_unify_across_the_arguments_of_a_call() -> None:
    spec = ops.get("linear")
    assert spec.unify({"x": (T, 64), "weight": (32, 64)}) == {"M": T, "K": 64, "N": 32}
    assert spec.unify({"x": (T, 64), "weight": (32, 64), "bias": (32,)})["N"] == 32
    with pytest.raises(RegistryError, match=r"op linear: weight: any\[N, K\]: dim K is 64 and 65"):
        spec.unify({"x": (T, 64), "weight": (32, 65)})
    with pytest.raises(RegistryError, match=r"x: act\[M, K\] got shape \('T',\)"):
        spec.unify({"x": (T,), "weight": (32, 64)})


def test_unknown_op_is_refused_with_near_names() -> None:
    with pytest.raises(RegistryError, match=r"there is no op 'rmsnorm'(?s:.*)did you mean 'rms_norm'"):
        ops.get("rmsnorm")


@pytest.mark.parametrize("text", ["x act[M]", "x: half[M]", "x: act[M", "x: act[M] ", "?x: act[M]"])
def test_unreadable_parameters_are_refused(text: str) -> None:
    with pytest.raises(RegistryError, match="write it as"):
        op(inputs=[text])


def test_function_and_signature_cannot_drift_apart() -> None:
    def scaled(x: object, weights: object, *, factor: float) -> object:
        return x

    with pytest.raises(RegistryError, match=r"op scaled: declares \['x', 'weight'\], its function takes"):
        op(inputs=["x: act[M, D]"], weights=["weight: f32[D]"], outputs=["y: act[M, D]"])(scaled)
    assert "scaled" not in OPS


def test_attributes_take_their_declared_types() -> None:
    spec = ops.get("qkv_rope_kv_write")
    given = {"head_dim": np.int64(64), "page_size": 16, "interleaved": True, "eps": 1}
    coerced = spec.coerce(given)
    assert coerced == {"head_dim": 64, "page_size": 16, "interleaved": True, "eps": 1.0}
    assert [type(value) for value in coerced.values()] == [int, int, bool, float]
    assert type(spec.coerce({"eps": np.float32(0.5)})["eps"]) is float


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eps", "1e-5"),
        ("eps", True),
        ("eps", None),
        ("head_dim", 64.0),
        ("head_dim", True),
        ("interleaved", 1),
        ("interleaved", "false"),
    ],
)
def test_attributes_of_other_types_are_refused(name: str, value: object) -> None:
    spec = ops.get("qkv_rope_kv_write")
    with pytest.raises(RegistryError, match=f"op qkv_rope_kv_write: attribute {name} is a .*, not "):
        spec.coerce({name: value})
    with pytest.raises(RegistryError, match="has no attribute 'epsilon'"):
        spec.coerce({"epsilon": value})


def test_attributes_have_a_type() -> None:
    def scaled(x: object, *, factor) -> object:  # type: ignore[no-untyped-def]
        return x

    with pytest.raises(RegistryError, match="op scaled: attribute factor has no type"):
        op(inputs=["x: act[M, D]"], outputs=["y: act[M, D]"])(scaled)
    assert "scaled" not in OPS


def test_an_op_is_declared_once() -> None:
    def add(a: object, b: object) -> object:
        return a

    before = OPS["add"]
    with pytest.raises(RegistryError, match="op add is declared twice"):
        op(inputs=["a: act[M, D]", "b: act[M, D]"], outputs=["y: act[M, D]"])(add)
    assert OPS["add"] is before


def test_outputs_that_take_over_memory_have_its_shape() -> None:
    for spec in OPS.values():
        params: dict[str, Param] = {param.name: param for param in spec.params}
        for output, inputs in spec.inplace.items():
            assert params[output].role == "output"
            assert all(params[name].dims == params[output].dims for name in inputs)
            assert all(params[name].type == params[output].type for name in inputs)


def test_every_op_says_what_it_does() -> None:
    assert all(spec.summary.endswith(".") for spec in OPS.values())


def test_the_contract_imports_no_torch() -> None:
    code = "import sys, llmcore.ops; [list(o.cases()) for o in llmcore.ops.OPS.values()]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

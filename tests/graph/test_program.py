"""From a graph to a program: which fused ops are taken, how nodes become segments, what kernels are given."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from helpers.graphs import KV, WIDTH, op_names, small_graph, weight
from llmcore.errors import RegistryError
from llmcore.graph.graph import Graph
from llmcore.graph.inputs import StepInputs
from llmcore.graph.program import Compiler, Memory, Program
from llmcore.graph.weight_store import WeightStore
from llmcore.hookspecs import BackendInfo, KernelInfo
from llmcore.plugins import Plugins
from llmcore.registry.choose import Preference, Registry

LARGEST = {"T": 6, "S": 2, "R": 4}
SHAPES = {**small_graph().inputs}


def kernel(op: str, **fields: Any) -> KernelInfo:
    return KernelInfo(op, f"kernels:{fields.pop('name', op)}", **fields)


BACKENDS = (
    BackendInfo(
        "plain",
        "",
        (
            *(kernel(op) for op in ("add", "rms_norm", "swiglu", "gather")),
            kernel("linear", formats=("F32",)),
            kernel("kv_write", group="kv"),
            kernel("attention", group="kv"),
        ),
        prepare="kernels:prepare",
    ),
    BackendInfo(
        "fusing",
        "",
        (
            kernel("add_rms_norm"),
            kernel("linear_add", formats=("F32",), supported="kernels:short"),
            kernel("rms_norm", name="other_norm"),
        ),
    ),
    BackendInfo("native", "", (kernel("add", abi="native", name="native_add"),)),
    BackendInfo("broken", "", (kernel("add", abi="native", name="add"),)),
)
PLUGINS = Plugins(backends={backend.name: backend for backend in BACKENDS})


def add(a: np.ndarray, b: np.ndarray, y: np.ndarray) -> None:
    np.add(a, b, out=y)


def rms_norm(x: np.ndarray, weight: np.ndarray, y: np.ndarray, *, eps: float) -> None:
    y[:] = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, y: np.ndarray) -> None:
    y[:] = x @ weight.T + (0 if bias is None else bias)


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that the records above name; it counts what is prepared."""
    module: Any = ModuleType("kernels")
    module.prepared = []
    module.prepare = module.prepared.append
    module.short = lambda node: None if node.dims["M"] <= 4 else "more than 4 rows"
    module.native_add = lambda: 4096
    module.add, module.rms_norm, module.linear = add, rms_norm, linear
    module.other_norm = rms_norm
    monkeypatch.setitem(sys.modules, "kernels", module)
    return module


class Weights(WeightStore):
    """Float32 weights out of thin air."""

    def __init__(self) -> None:
        super().__init__({})
        self.arrays: dict[str, np.ndarray] = {}

    def format(self, key: str) -> str:
        return "F32"

    def float32(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def operand(self, key: str, kernel: KernelInfo) -> np.ndarray:
        return self.arrays[key]


class FakePool:
    """What native segments are given; they are looked at, not run."""

    scratch = 64


def compiler(*order: str, outputs: dict[str, np.ndarray] | None = None, **ops: str) -> Compiler:
    shapes = {name: (value.shape, value.dtype.replace("act", "f32")) for name, value in SHAPES.items()}
    memory = Memory(Weights(), {0: np.zeros((4, 2, 4, 1, WIDTH), np.float32)}, outputs or {})
    registry = Registry(PLUGINS, Preference(order, ops))
    return Compiler(registry, memory, StepInputs(shapes, LARGEST), FakePool)  # type: ignore[arg-type]


def residual_graph() -> Graph:
    """``rms_norm(z + linear(x))``: its sum fits two fused ops."""
    g = small_graph()
    with g.scope("block"):
        y = g.op("linear", x=g.input("x"), weight=weight("w"))
        total = g.op("add", a=g.input("z"), b=y)
        g.outputs = {"y": g.op("rms_norm", x=total, weight=weight("n", WIDTH), eps=1e-5)}
    return g


def fused(made: Compiler, graph: Graph, tokens: int = 6) -> list[str]:
    made.fuse(graph, {**LARGEST, "T": tokens})
    return op_names(graph)


PARTS = ["linear", "add", "rms_norm"]


def test_fused_op_of_the_most_wanted_backend() -> None:
    assert fused(compiler("fusing", "plain"), residual_graph()) == ["linear", "add_rms_norm"]


def test_fused_op_of_a_backend_that_is_less_wanted_than_the_parts() -> None:
    assert fused(compiler("plain", "fusing"), residual_graph()) == PARTS


def test_fused_op_that_nobody_offers() -> None:
    assert fused(compiler("plain"), residual_graph()) == PARTS


def test_user_s_kernel_for_a_part_must_run() -> None:
    assert fused(compiler("fusing", "plain", rms_norm="plain"), residual_graph()) == PARTS
    assert fused(compiler("fusing", "plain", add="plain"), residual_graph(), tokens=2) == PARTS


def test_user_s_wish_for_the_fused_op() -> None:
    assert fused(compiler("plain", add_rms_norm="fusing"), residual_graph()) == ["linear", "add_rms_norm"]


def test_kernel_that_does_not_support_the_fused_node() -> None:
    """The predicate sees the fused node's sizes; the parts are taken where it says no."""
    g = small_graph()
    g.outputs = {"y": g.op("add", a=g.input("z"), b=g.op("linear", x=g.input("x"), weight=weight("w")))}
    assert fused(compiler("fusing", "plain"), g.fork(), tokens=5) == ["linear", "add"]
    assert fused(compiler("fusing", "plain"), g.fork(), tokens=4) == ["linear_add"]


def test_fused_op_whose_parts_nobody_offers() -> None:
    """No kernel for the sum by itself: the fused one is the only way."""
    assert fused(compiler("fusing"), residual_graph()) == ["linear", "add_rms_norm"]


def test_group_s_ops_are_not_fused_away_from_their_backend() -> None:
    g = small_graph()
    x = g.input("x")
    g.op("kv_write", k=x, v=x, slots=g.input("slots"), kv=KV, head_dim=WIDTH, page_size=4)
    assert fused(compiler("fusing", "plain", attention="plain"), g) == ["kv_write"]


def run(program: Program, made: Compiler, tokens: int, rows: int = 0) -> None:
    made.inputs.set_sizes(tokens, 1, rows)
    program.run()


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def filled(made: Compiler) -> Compiler:
    """Values for inputs and weights."""
    weights: Any = made.memory.weights
    weights.arrays = {"w": numbers(WIDTH, WIDTH, seed=1), "n": numbers(WIDTH, seed=2)}
    for i, name in enumerate(("x", "z")):
        made.inputs.arrays[name][:] = numbers(6, WIDTH, seed=3 + i)
    return made


def expected(made: Compiler) -> np.ndarray:
    """What :func:`residual_graph` computes, in float64."""
    weights: Any = made.memory.weights
    x, z = (made.inputs.arrays[name].astype(np.float64) for name in ("x", "z"))
    total = z + x @ weights.arrays["w"].T
    scaled: np.ndarray = total / np.sqrt((total**2).mean(-1, keepdims=True) + 1e-5) * weights.arrays["n"]
    return scaled


def test_program_computes_the_step() -> None:
    out = np.full((6, WIDTH), 9, np.float32)
    made = filled(compiler("plain", outputs={"y": out}))
    program = made.build(residual_graph(), LARGEST)
    run(program, made, 3)
    np.testing.assert_allclose(out[:3], expected(made)[:3], atol=1e-5)
    assert (out[3:] == 9).all()  # rows beyond the step are left alone
    run(program, made, 6)
    np.testing.assert_allclose(out, expected(made), atol=1e-5)


def test_programs_of_all_sizes_share_memory() -> None:
    out = np.zeros((6, WIDTH), np.float32)
    made = filled(compiler("plain", outputs={"y": out}))
    graph = residual_graph()
    made.reserve([graph], LARGEST)
    arena = made.arena
    small, large = made.build(graph, {**LARGEST, "T": 2}), made.build(graph, LARGEST)
    assert made.arena is arena and small.plan.nbytes < large.plan.nbytes == arena.nbytes
    for program, tokens in ((small, 2), (large, 6), (small, 1)):
        out[:] = 0
        run(program, made, tokens)
        np.testing.assert_allclose(out[:tokens], expected(made)[:tokens], atol=1e-5)


def test_program_built_for_a_smaller_arena_keeps_running() -> None:
    out = np.zeros((6, WIDTH), np.float32)
    made = filled(compiler("plain", outputs={"y": out}))
    small = made.build(residual_graph(), {**LARGEST, "T": 2})
    made.build(residual_graph(), LARGEST)
    run(small, made, 2)
    np.testing.assert_allclose(out[:2], expected(made)[:2], atol=1e-5)


def test_rows_say_what_runs_and_why() -> None:
    made = filled(compiler("plain", outputs={"y": np.zeros((6, WIDTH), np.float32)}, rms_norm="fusing"))
    rows = made.build(residual_graph(), LARGEST).rows
    assert [(row.op, row.path, row.backend, row.kernel, row.abi) for row in rows] == [
        ("linear", "block", "plain", "kernels:linear", "call"),
        ("add", "block", "plain", "kernels:add", "call"),
        ("rms_norm", "block", "fusing", "kernels:other_norm", "call"),
    ]
    assert [row.reason for row in rows] == ["choice 1 of 1", "choice 1 of 1", "backend.ops.rms_norm=fusing"]


def test_backends_are_prepared_once(kernels: Any) -> None:
    made = filled(compiler("plain", outputs={"y": np.zeros((6, WIDTH), np.float32)}))
    for tokens in (2, 6):
        made.build(residual_graph(), {**LARGEST, "T": tokens})
    assert kernels.prepared == [1]


def two_abis() -> Graph:
    """Two sums, a norm, and a sum again."""
    g = small_graph()
    x = g.op("add", a=g.input("x"), b=g.input("z"))
    x = g.op("add", a=x, b=g.input("z"))
    x = g.op("rms_norm", x=x, weight=weight("n", WIDTH), eps=1e-5)
    g.outputs = {"y": g.op("add", a=x, b=g.input("z"))}
    return g


def words(address: int, count: int) -> list[int]:
    import ctypes

    return list((ctypes.c_int64 * count).from_address(address))


def test_native_nodes_become_rows_between_calls() -> None:
    out = np.zeros((6, WIDTH), np.float32)
    made = filled(compiler("native", "plain", outputs={"y": out}))
    program = made.build(two_abis(), LARGEST)
    assert [(segment.kind, segment.nodes) for segment in program.segments] == [
        ("native", [0, 1]),
        ("calls", [2]),
        ("native", [3]),
    ]
    assert [row.segment for row in program.rows] == [0, 0, 1, 2]
    last: Any = program.segments[2]
    function, operands = last.table[0].tolist()
    _, scratch, a, b, y, rows, width = words(operands, 7)
    assert function == 4096 and scratch == FakePool.scratch
    assert a in range(made.arena.ctypes.data, made.arena.ctypes.data + made.arena.nbytes)
    assert b == made.inputs.arrays["z"].ctypes.data and y == out.ctypes.data
    made.inputs.set_sizes(5, 1, 0)
    assert words(rows, 1) == [5] and words(width, 1) == [WIDTH]


def test_native_target_that_is_no_address() -> None:
    made = filled(compiler("broken", "plain", outputs={"y": np.zeros((6, WIDTH), np.float32)}))
    sys.modules["kernels"].add = lambda: "not an address"  # type: ignore[attr-defined]
    with pytest.raises(
        RegistryError, match=r"kernels:add of backend broken is not native: it returned 'not an address'"
    ):
        made.build(two_abis(), LARGEST)


def test_node_without_a_kernel_is_named() -> None:
    g = small_graph()
    with g.scope("model.layers.2.mlp"):
        g.outputs = {"y": g.op("swiglu", gate=g.input("x"), up=g.input("z"))}
    with pytest.raises(
        RegistryError, match=r"no kernel for op 'swiglu' at model.layers.2.mlp: fusing: does not offer it"
    ):
        compiler("fusing").build(g, LARGEST)

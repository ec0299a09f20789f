"""Packed float weights: what packing keeps, odd sizes against the reference, the same bits in tiles of every shape."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llmcore import ops
from llmcore.hookspecs import KernelInfo
from llmcore.native.machine import machine as processor
from llmcore.ops import Case, tolerances
from llmcore.plugins import Plugins
from llmcore.registry.choose import Preference, Registry
from llmcore.registry.node import NodeView
from llmcore.testing.invoke import Machine, Setting, execute
from llmcore.testing.judge import compare, compare_choice
from llmcore.testing.operands import Values, expected, make_values, random_weight
from llmcore.weights.formats import FORMATS
from llmcore_numba.float_packed import pack_floats
from llmcore_numba.float_packing import FLOAT_OPS, FLOAT_PACKINGS, ROWS, VECTORS
from llmcore_numba.plugin import llmcore_backends

BACKEND = llmcore_backends()[0]
TOKENS = (0, 1, 2, 3, 4, 5, 6, 7, 63, 64, 65)
INNER, OUTER = (1, 31, 33, 577), (1, 15, 17, 49)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine()


PRODUCTS = [op for op in FLOAT_OPS if "qkv" not in op]


def _fitting(op: str, name: str, exact: bool) -> list[KernelInfo]:
    fitting = [kernel for kernel in BACKEND.kernels if kernel.op == op and kernel.formats == (name,)]
    return [kernel for kernel in fitting if kernel.exact is exact]


def _kernel(op: str, name: str, *, exact: bool = True) -> KernelInfo:
    return next(kernel for kernel in _fitting(op, name, exact) if not kernel.target.endswith("_alone"))


def _kernels(kernel: KernelInfo, tokens: int) -> list[KernelInfo]:
    """``kernel``, and what is bound in its place for one token."""
    same = _fitting(kernel.op, kernel.formats[0], kernel.exact)
    return [kernel, *(each for each in same if each.target == f"{kernel.target}_alone" and tokens == 1)]


def _cases() -> list[Any]:
    """Every op with every format, and BF16 with rounded tokens where the processor multiplies them."""
    found = []
    for op, (name, exact) in itertools.product(PRODUCTS, [*((name, True) for name in FLOAT_PACKINGS), ("BF16", False)]):
        lacking = not exact and not processor().has("avx512bf16")
        marks = [pytest.mark.skip("needs AVX512 BF16")] if lacking else []
        if op != "linear" and name == "F16":
            marks.append(pytest.mark.slow)
        found.append(
            pytest.param(_kernel(op, name, exact=exact), marks=marks, id=f"{op}-{name}{'' if exact else '-rounded'}")
        )
    return found


def _values(kernel: KernelInfo, dims: dict[str, int]) -> Values:
    spec = ops.get(kernel.op)
    weights = dict.fromkeys((p.name for p in spec.of("weight") if p.type == "any"), kernel.formats[0])
    present = ("bias",) if dims["N"] % 2 and kernel.op in ("linear", "linear_add") else ()
    return make_values(spec, Case({**dims, "E": dims["K"]}, present=present), weights, "float32", 0)


def _first(values: Values, count: int) -> Values:
    cut = {name: array[:count] if name in ("x", "residual") else array for name, array in values.arrays.items()}
    return Values(cut, values.stored)


@pytest.mark.parametrize("name", FLOAT_PACKINGS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 2), (37, 33), (64, 64)])
def test_packing_keeps_every_weight(name: str, rows: int, columns: int) -> None:
    tensor = random_weight("w", (rows, columns), FORMATS[name], np.random.default_rng(0))
    packing = FLOAT_PACKINGS[name]
    packed = pack_floats(tensor)
    blocks, vectors = -(-rows // ROWS), -(-columns // packing.columns)
    assert packed.shape == (blocks, vectors, ROWS, packing.columns)
    assert packed.nbytes == blocks * vectors * VECTORS * packing.vector_bytes
    bits = tensor.raw().view(packed.dtype).reshape(rows, columns)
    unpacked = packed.transpose(0, 2, 1, 3).reshape(blocks * ROWS, -1)
    np.testing.assert_array_equal(unpacked[:rows, :columns], bits)
    assert not unpacked[rows:].any()
    assert not unpacked[:, columns:].any()


@pytest.mark.parametrize("exact", [True, False])
def test_tokens_are_rounded_only_where_that_is_faster_and_wanted(exact: bool) -> None:
    registry = Registry(Plugins(backends={BACKEND.name: BACKEND}), Preference((BACKEND.name,), exact=exact))
    for op in PRODUCTS:
        dims = {"M": 1, "K": 33, "N": 17, "F": 17}
        formats = {param.name: "BF16" for param in ops.get(op).of("weight") if param.type == "any"}
        chosen = registry.choose(NodeView(op, "", dims=dims, formats=formats)).kernel
        assert chosen.exact is (exact or not processor().has("avx512bf16"))
        assert chosen.layout == FLOAT_PACKINGS["BF16"].layout


@pytest.mark.parametrize("kernel", _cases())
def test_odd_sizes(kernel: KernelInfo, machine: Machine) -> None:
    """Against the reference with the most tokens; fewer of them, on other numbers of threads, give the same bits."""
    output = "ids" if kernel.op == "classifier_argmax" else "y"
    every = itertools.product(INNER, OUTER) if kernel.op == "linear" else zip(INNER, reversed(OUTER), strict=True)
    for inner, outer in every:
        dims = {"M": TOKENS[-1], "K": inner, "N": outer, "F": outer}
        values = _values(kernel, dims)
        attrs, sizes = dict.fromkeys(ops.get(kernel.op).attrs, 1e-5), {**dims, "E": inner}
        together = execute(kernel, values, sizes, attrs, Setting(machine, threads=3))[output]
        factor = tolerances.relative("float32", exact=kernel.exact)
        if output == "ids":
            compare_choice(output, together, expected(ops.get("linear"), values, {})["y"], factor)
        else:
            compare(output, together, expected(ops.get(kernel.op), values, attrs)["y"], factor)
        for count in TOKENS[:-1]:
            setting = Setting(machine, threads=1 + count % 3, skewed=count % 2 == 1)
            for each in _kernels(kernel, count):
                alone = execute(each, _first(values, count), {**sizes, "M": count}, attrs, setting)[output]
                np.testing.assert_array_equal(alone, together[:count])


@pytest.mark.parametrize("kernel", [case for case in _cases() if case.id in ("linear-F32", "linear-BF16-rounded")])
def test_runs_of_columns_and_chunks_of_tokens(kernel: KernelInfo, machine: Machine) -> None:
    """So many columns that many tokens take them in several runs, so many tokens that there are several chunks."""
    dims = {"M": 250, "K": 4099, "N": 80}
    values = _values(kernel, dims)
    together = execute(kernel, values, dims, {}, Setting(machine, threads=2))["y"]
    compare(
        "y", together, expected(ops.get("linear"), values, {})["y"], tolerances.relative("float32", exact=kernel.exact)
    )
    for count in (1, 6, 7, 121):
        alone = execute(kernel, _first(values, count), {**dims, "M": count}, {}, Setting(machine))["y"]
        np.testing.assert_array_equal(alone, together[:count])


def test_rounded_tokens_are_what_bfloat16_holds(machine: Machine) -> None:
    """Tokens of few bits lose nothing; the others are rounded to nearest, ties to even."""
    if not processor().has("avx512bf16"):
        pytest.skip("needs AVX512 BF16")
    kernel, dims = _kernel("linear", "BF16", exact=False), {"M": 5, "K": 77, "N": 16}
    values = _values(kernel, dims)
    values.arrays["x"][0] = np.random.default_rng(1).integers(-255, 256, 77)
    values.arrays["x"][1] = 1 + 2.0**-8 + 2.0**-7 * (np.arange(77) % 2)  # ties
    rounded = values.arrays["x"].astype(ml_dtypes.bfloat16).astype(np.float64)
    np.testing.assert_array_equal(rounded[0], values.arrays["x"][0])
    want = rounded @ values.stored["weight"].dequantize().T.astype(np.float64)
    got = execute(kernel, values, dims, {}, Setting(machine))["y"]
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("kernel", [case for case in _cases() if case.id.startswith("linear-")])
def test_flaws_are_not_hidden(kernel: KernelInfo, machine: Machine) -> None:
    dims = {"M": 4, "K": 33, "N": 17}
    values = _values(kernel, dims)
    values.arrays["x"][0, 3], values.arrays["x"][1, 32] = np.nan, np.inf
    got = execute(kernel, values, dims, {}, Setting(machine))["y"]
    assert np.isnan(got[0]).all()
    assert not np.isfinite(got[1]).any()
    assert np.isfinite(got[2:]).all()

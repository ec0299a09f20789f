"""Packed weights hold what the checkpoint holds, and quantized tokens what the activations hold."""

from __future__ import annotations

import numpy as np
import pytest

from llmcore import ops
from llmcore.errors import CheckpointError
from llmcore.hookspecs import KernelInfo
from llmcore.native.machine import machine
from llmcore.ops import Case
from llmcore.testing.invoke import Machine, Setting, execute
from llmcore.testing.operands import Values, make_values, random_weight, stored
from llmcore.testing.state import Cache, Heads
from llmcore.weights.formats import FORMATS
from llmcore_numba.packed import Array, pack
from llmcore_numba.packing import COLUMNS, OUTLIER, PACKINGS, ROWS, Packing
from llmcore_numba.plugin import llmcore_backends

LOSSLESS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
BACKEND = llmcore_backends()[0]


def _unpacked(packed: Array, packing: Packing) -> Array:
    """The weights in packed blocks, float32 ``[rows, columns]``: each told by its place alone."""
    blocks, groups, _ = packed.shape
    out = np.empty((blocks * ROWS, groups * COLUMNS), np.float32)
    for block in range(blocks):
        for group in range(groups):
            data = packed[block, group]
            halves = data[: packing.head].view(np.float16).astype(np.float32)
            codes = data[packing.head :]
            for row in range(ROWS):
                for k in range(COLUMNS):
                    if packing.bits == 8:
                        code = int(codes[k // 4 * 4 * ROWS + row * 4 + k % 4].view(np.int8))
                    else:
                        code = int(codes[k % 16 // 4 * 4 * ROWS + row * 4 + k % 4]) >> (4 if k >= 16 else 0) & 15
                    minimum = halves[ROWS + row] if packing.minima else -8 * halves[row] if packing.bits == 4 else 0
                    out[block * ROWS + row, group * COLUMNS + k] = halves[row] * code + minimum
    return out


@pytest.mark.parametrize("name", PACKINGS)
@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (32, 2), (69, 3)])
def test_packing_keeps_every_weight(name: str, rows: int, groups: int) -> None:
    shape = (rows, groups * FORMATS[name].block)
    tensor = random_weight("w", shape, FORMATS[name], np.random.default_rng(0))
    packing = PACKINGS[name]
    packed = pack(tensor)
    assert packed.shape == (-(-rows // ROWS), shape[1] // COLUMNS, packing.nbytes)
    weights = _unpacked(packed, packing)
    want = tensor.dequantize()
    if name in LOSSLESS:
        np.testing.assert_array_equal(weights[:rows], want)
    elif name in ("Q4_K", "Q5_K"):
        np.testing.assert_allclose(weights[:rows], want, rtol=0, atol=2e-3 * np.abs(want).max())
    else:
        largest = np.abs(want.reshape(-1, COLUMNS)).max(1)
        error = np.abs(weights[:rows] - want).reshape(-1, COLUMNS).max(1)
        assert (error <= largest * (1 / 254 + 1e-3)).all()
    assert not weights[rows:].any()


def _kernel(op: str, name: str, tokens: int, kv_dtype: str = "", *, exact: bool = False) -> KernelInfo:
    """What is bound for steps of so many tokens."""
    fitting = [kernel for kernel in BACKEND.kernels if kernel.op == op and kernel.formats == (name,)]
    fitting = [kernel for kernel in fitting if kernel.exact is exact and kv_dtype in ("", *kernel.kv_dtypes)]
    alone, general = fitting
    return general if tokens > 1 else alone


def _results(x: Array, op: str = "linear", name: str = "Q8_0", rows: int = 16) -> tuple[Array, Array]:
    """What the kernel of ``linear``, or of ``linear_add`` with nothing to add to, makes of ``x``; and the weights."""
    dims = {"M": len(x), "K": x.shape[1], "N": rows}
    values = make_values(ops.get(op), Case(dims), {"weight": name}, "float32", 1)
    given = Values({"x": x, "residual": np.zeros((len(x), rows), np.float32)}, values.stored)
    if op == "linear":
        del given.arrays["residual"]
    return execute(_kernel(op, name, len(x)), given, dims, {}, Setting(Machine()))["y"], values.stored[
        "weight"
    ].dequantize()


def test_a_scale_that_16_bits_cannot_hold_is_refused() -> None:
    blocks = np.full((16, 144), 255, np.uint8)
    blocks[:, :4] = np.array([60000.0, 0.0], "<f2").view(np.uint8)
    with pytest.raises(CheckpointError, match="too large for 16 bits"):
        pack(stored("w", (16, 256), FORMATS["Q4_K"], blocks))


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("op", ["linear", "linear_add"])
@pytest.mark.parametrize("tokens", [1, 3, 21])
def test_tokens_that_the_codes_hold_are_multiplied_exactly(op: str, name: str, tokens: int) -> None:
    """Every other token has outliers, in a group where the others are multiples of its scale."""
    x = np.random.default_rng(2).integers(-127, 128, (tokens, 96)).astype(np.float32)
    x[:, ::32] = 127  # the largest of every group, so that its scale is 1
    x[::2, 32:64] *= 3
    x[::2, 40], x[::2, 95] = -127 * 128, 12345.678
    got, weights = _results(x, op, name, rows=49)
    want = x.astype(np.float64) @ weights.T.astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("tokens", [1, 21])
def test_the_greedy_token_is_that_of_the_largest_logit(tokens: int) -> None:
    """Whether logits are wanted depends on who shares the batch: both heads must see the same quantized tokens."""
    dims = {"M": tokens, "K": 576, "N": 300}
    x = np.random.default_rng(4).standard_t(3, (tokens, 576)).astype(np.float32)  # some elements of 5 means, and of 6
    values = Values({"x": x}, make_values(ops.get("linear"), Case(dims), {"weight": "Q8_0"}, "float32", 1).stored)
    logits = execute(_kernel("linear", "Q8_0", len(x)), values, dims, {}, Setting(Machine()))["y"]
    ids = execute(_kernel("classifier_argmax", "Q8_0", len(x)), values, dims, {}, Setting(Machine()))["ids"]
    np.testing.assert_array_equal(ids, logits.argmax(1))
    assert OUTLIER["classifier_argmax"] == OUTLIER["linear"]


def test_extreme_codes_do_not_overflow() -> None:
    """-128 times 127, summed over pairs, is the most that 16 bits must hold."""
    x = np.full((4, 256), 127.0, np.float32)
    x[1] = -127.0
    x[2, ::2] = -127.0
    rng = np.random.default_rng(0)
    dims = {"M": 4, "K": 256, "N": 32}
    blocks = random_weight("w", (32, 256), FORMATS["Q8_0"], rng).raw().copy().reshape(32, 8, 34)
    blocks[:, :, 2:] = 128  # -128 as a byte
    weight = stored("w", (32, 256), FORMATS["Q8_0"], blocks)
    values = Values({"x": x}, {"weight": weight})
    got = execute(_kernel("linear", "Q8_0", len(x)), values, dims, {}, Setting(Machine()))["y"]
    want = x.astype(np.float64) @ weight.dequantize().T.astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-3)


def test_flaws_are_not_hidden() -> None:
    x = np.ones((4, 64), np.float32)
    x[0, 3], x[1, 40], x[3] = np.nan, np.inf, 0.0
    got, weights = _results(x)
    assert np.isnan(got[0]).all()
    assert np.isnan(got[1]).all()
    np.testing.assert_allclose(got[2], weights.sum(1), rtol=1e-3, atol=1e-3 * np.abs(weights.sum(1)).max())
    assert not got[3].any()


QKV = ("qkv_rope_kv_write", "rms_norm_qkv_rope_kv_write")
SHAPES = (  # heads, key heads, head_dim, pairs, interleaved, optional parameters
    (4, 2, 64, 32, False, ()),
    (3, 3, 32, 8, True, ("bq", "bk", "bv")),
    (2, 1, 96, 30, False, ("nq", "nk")),
)


@pytest.mark.parametrize("op", QKV)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "kv_dtype", "exact"),
    [
        ("Q8_0", "float32", False),
        ("Q4_1", "bfloat16", False),
        ("Q8_0", "int8", False),
        ("F32", "float32", True),
        ("BF16", "int8", True),
        ("BF16", "bfloat16", False),
    ],
)
def test_a_token_alone_gets_the_bits_of_one_among_others(
    op: str, shape: tuple[int, int, int, int, bool, tuple[str, ...]], name: str, kv_dtype: str, exact: bool
) -> None:
    """A head at a time by whoever takes it, or in three stages: the same queries, and the same pages."""
    heads, kv_heads, head_dim, pairs, interleaved, present = shape
    if not exact and name == "BF16" and not machine().has("avx512bf16"):
        pytest.skip("needs AVX512 BF16")
    sizes = {"K": 192, "E": 64, "D": heads * head_dim, "G": kv_heads * head_dim, "C": head_dim, "P": 9, "F": pairs}
    attrs = {"head_dim": head_dim, "page_size": 16, "interleaved": interleaved, "eps": 1e-6, "norm_eps": 1e-5}
    spec = ops.get(op)
    attrs = {key: attrs[key] for key in spec.attrs}

    def indices(_dims: object, _rng: object) -> dict[str, Array]:
        return {"positions": np.array([7, 3], np.int32), "slots": np.array([21, 5], np.int32)}

    weights = {param.name: name for param in spec.of("weight") if param.type == "any"}
    two = {letter: {"T": 2, **sizes}[letter] for letter in spec.dims}
    values = make_values(spec, Case(two, attrs, present, indices), weights, "float32", 3)
    first = {key: array[:1] if key in ("x", "positions", "slots") else array for key, array in values.arrays.items()}
    found = []
    for given, tokens, threads in ((values.arrays, 2, 1), (first, 1, 1), (first, 1, 2)):
        setting = Setting(Machine(), kv_dtype=kv_dtype, threads=threads)
        cache = Cache(BACKEND, Heads(kv_heads, head_dim, 16), 2, setting)
        kernel = _kernel(op, name, tokens, kv_dtype, exact=exact)
        got = execute(kernel, Values(given, values.stored), {**two, "T": tokens}, attrs, setting, cache.memory)
        found.append((got["q"][0], cache.memory.array[1].copy()))
    for q, page in found[1:]:
        np.testing.assert_array_equal(q, found[0][0])
        np.testing.assert_array_equal(page.view(np.uint8), found[0][1].view(np.uint8))

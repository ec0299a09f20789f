"""Sizes beyond the kit's: the same bits whatever the tile, the chunking, the batch and the number of threads."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from llmcore import ops
from llmcore.cache.layout import KV_DTYPES
from llmcore.hookspecs import KernelInfo
from llmcore.ops import Case
from llmcore.registry.node import NodeView
from llmcore.testing.conformance import check_values, run_case, unsupported
from llmcore.testing.invoke import Machine, Setting, execute, why_not
from llmcore.testing.operands import Values, make_values
from llmcore.testing.state import Cache, Heads, dense_attention
from llmcore.weights.formats import FORMATS
from llmcore_numba.plugin import KV_LAYOUTS, llmcore_backends

BACKEND = llmcore_backends()[0]
PRODUCTS = ("linear", "linear_add", "gate_up_swiglu", "rms_norm_gate_up_swiglu", "classifier_argmax")
COMMON = {"F32", "Q8_0", "Q4_1"}  # the other formats of the last three take seconds to compile


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine()


def _kernel(op: str, weight_format: str, *, exact: bool = True) -> KernelInfo:
    fitting = [kernel for kernel in BACKEND.kernels if kernel.op == op and kernel.formats == (weight_format,)]
    return next(kernel for kernel in fitting if kernel.exact is exact and not _for_one_token(kernel))


def _for_one_token(kernel: KernelInfo) -> bool:
    return kernel.supported.endswith("comes_alone")


def _kernels(kernel: KernelInfo, tokens: int) -> list[KernelInfo]:
    """``kernel``, and what is bound in its place for one token."""
    wanted = (kernel.op, kernel.formats, kernel.exact)
    same = [each for each in BACKEND.kernels if (each.op, each.formats, each.exact) == wanted and _for_one_token(each)]
    return [kernel, *same] if tokens == 1 else [kernel]


@pytest.mark.parametrize(
    ("weight_format", "exact"),
    [
        *((name, True) for name in ("Q4_1", "Q6_K")),
        *((name, False) for name in ("Q4_0", "Q4_1", "Q8_0")),
    ],
)
def test_linear_over_several_chunks_of_tokens(weight_format: str, exact: bool, machine: Machine) -> None:
    dims = {"M": 400, "K": 256 if weight_format == "Q6_K" else 96, "N": 37}
    kernel, spec = _kernel("linear", weight_format, exact=exact), ops.get("linear")
    values = make_values(spec, Case(dims), {"weight": weight_format}, "float32", 0)
    together = execute(kernel, values, dims, {}, Setting(machine, threads=3))["y"]
    for count in (1, 2, 3, 4, 193):
        some = Values({**values.arrays, "x": values.arrays["x"][200 : 200 + count]}, values.stored)
        for each in _kernels(kernel, count):
            alone = execute(each, some, {**dims, "M": count}, {}, Setting(machine))["y"]
            np.testing.assert_array_equal(alone, together[200 : 200 + count])


def _product(kernel: KernelInfo):
    rare = kernel.op != "linear" and not COMMON & set(kernel.formats)
    name = f"{kernel.op}.{kernel.formats[0]}{'' if kernel.exact else ' packed'}"
    return pytest.param(kernel, marks=[pytest.mark.slow] if rare else [], id=name)


@pytest.mark.parametrize(
    "kernel", [_product(each) for each in BACKEND.kernels if each.op in PRODUCTS and not _for_one_token(each)]
)
def test_products_of_odd_sizes(kernel: KernelInfo, machine: Machine) -> None:
    """No multiple of a tile: as the reference for 65 tokens, and the same bits for fewer of them."""
    spec, (name,) = ops.get(kernel.op), kernel.formats
    block = FORMATS[name].block
    for width in (47, 100) if block == 1 else (block, 3 * block):
        for rows in (1, 15, 17, 37):
            sizes = {"M": 65, "K": width, "E": width, "N": rows, "F": rows}
            dims, attrs = {letter: sizes[letter] for letter in spec.dims}, dict.fromkeys(spec.attrs, 1e-5)
            present = tuple(param.name for param in spec.params if param.optional)
            case = Case(dims, attrs, present)
            weights = {param.name: name for param in spec.of("weight") if param.type == "any"}
            reason = unsupported(kernel, BACKEND, case, weights, "float32")
            if reason:
                pytest.skip(reason)
            values = make_values(spec, case, weights, "float32", rows)
            check_values(kernel, BACKEND, case, values, Setting(machine, threads=2))
            (output,) = (param.name for param in spec.outputs)
            together = execute(kernel, values, dims, attrs, Setting(machine))[output]
            by_token = {param.name for param in spec.of("input")}
            for count in (1, 2, 3, 4, 5, 6, 7, 63, 64):
                some = {key: array[:count] if key in by_token else array for key, array in values.arrays.items()}
                for each in _kernels(kernel, count):
                    given, threads = Values(some, values.stored), 1 + (each is not kernel)
                    got = execute(each, given, {**dims, "M": count}, attrs, Setting(machine, threads=threads))[output]
                    np.testing.assert_array_equal(got, together[:count])


@pytest.mark.parametrize("page_size", [16, 24, 64])
@pytest.mark.parametrize(
    ("heads", "kv_dtype", "exact"),
    [
        (Heads(3, 64, 0), "float32", True),
        (Heads(1, 20, 0), "float32", True),
        (Heads(2, 64, 0), "bfloat16", True),
        (Heads(2, 64, 0), "bfloat16", False),
        (Heads(1, 20, 0), "bfloat16", False),
        (Heads(2, 64, 0), "int8", True),
        (Heads(1, 20, 0), "int8", True),
    ],
)
def test_attention_of_a_prompt_in_any_chunks(
    heads: Heads, kv_dtype: str, exact: bool, page_size: int, machine: Machine
) -> None:
    """Long enough for several parts: a single token's go to several threads, a chunk's are merged by one."""
    length, query_heads = 600, 3 * heads.kv_heads
    heads = Heads(heads.kv_heads, heads.head_dim, page_size)
    rng = np.random.default_rng(0)
    pages = -(-length // page_size)
    table = rng.permutation(pages).astype(np.int32)
    token = np.arange(length)
    slots = (table[token // page_size] * page_size + token % page_size).astype(np.int32)
    q = rng.standard_normal((length, query_heads * heads.head_dim)).astype(np.float32)
    keys, values = rng.standard_normal((2, length, heads.kv_heads * heads.head_dim)).astype(np.float32)

    kernel = _attention(kv_dtype, exact=exact)

    def prefill(ends: list[int], threads: int) -> np.ndarray:
        cache = Cache(BACKEND, heads, pages, Setting(machine, kv_dtype=kv_dtype, threads=threads), kernel)
        out = []
        for first, stop in pairwise([0, *ends]):
            rows = slice(first, stop)
            cache.write(keys[rows], values[rows], slots[rows])
            index = {
                "query_starts": np.zeros(1, np.int32),
                "query_lens": np.array([stop - first], np.int32),
                "kv_lens": np.array([stop], np.int32),
                "block_tables": table[None],
            }
            out.append(cache.attend(q[rows], index, heads.head_dim**-0.5).copy())
        return np.concatenate(out)

    whole = prefill([length], threads=1)
    kept = [_kept(kv_dtype, rows, heads) for rows in (keys, values)]
    np.testing.assert_allclose(
        whole, dense_attention(q, *kept, heads, heads.head_dim**-0.5), rtol=0, atol=2e-5 if exact else 2e-2
    )
    hundreds, near_parts = [*range(100, 601, 100)], [255, 256, 257, 258, 511, 512, 513, 514]
    for ends, threads in (([length], 3), (hundreds, 2), ([37, 290, 600], 1), ([*near_parts, *range(590, 601)], 2)):
        np.testing.assert_array_equal(prefill(ends, threads), whole)


def _attention(kv_dtype: str, *, exact: bool) -> KernelInfo:
    """Skips the test where the processor has no such kernel."""
    found = next(
        kernel
        for kernel in BACKEND.kernels
        if kernel.op == "attention" and kernel.kv_dtypes == (kv_dtype,) and kernel.exact is exact
    )
    lacks = unsupported(found, BACKEND, next(iter(ops.get("attention").cases())), {}, "float32", kv_dtype)
    if lacks:
        pytest.skip(lacks)
    return found


def _kept(kv_dtype: str, rows: np.ndarray, heads: Heads) -> np.ndarray:
    return KV_DTYPES[kv_dtype](rows.reshape(len(rows), heads.kv_heads, heads.head_dim)).reshape(rows.shape)


def test_long_sequences_that_share_a_step(machine: Machine) -> None:
    """Single tokens far in, others near the beginning and a chunk, with parts for any thread: as if each were alone."""
    news, lens = np.array([1, 5, 1, 0, 1], np.int32), np.array([700, 300, 3, 20, 513], np.int32)
    width, heads = 44, Heads(2, 32, 16)
    tables = np.random.default_rng(1).permutation(5 * width).astype(np.int32).reshape(5, width)
    batch = {
        "query_starts": (np.cumsum(news) - news).astype(np.int32),
        "query_lens": news,
        "kv_lens": lens,
        "block_tables": tables,
    }
    case = Case(
        {"T": int(news.sum()), "D": 8 * 32, "S": 5, "B": width},
        {"head_dim": 32, "kv_heads": heads.kv_heads, "page_size": heads.page_size, "scale": 0.2},
        inputs=lambda _dims, _rng: batch,
    )
    for kernel in (kernel for kernel in BACKEND.kernels if kernel.op == "attention"):
        if unsupported(kernel, BACKEND, case, {}, "float32", kernel.kv_dtypes[0]):
            continue
        run_case(kernel, BACKEND, case, kv_dtype=kernel.kv_dtypes[0], machine=machine, batch_invariance=True)


@pytest.mark.parametrize("kv_dtype", list(KV_LAYOUTS))
def test_what_the_cache_keeps(kv_dtype: str, machine: Machine) -> None:
    """The only token of a sequence has its own value for a result, so what is kept can be read back bit by bit."""
    rng, heads, count = np.random.default_rng(0), Heads(1, 48, 4), 200
    sizes = np.repeat(10.0 ** rng.uniform(-9, 6, (count, 6)), 8, axis=1)
    values = (rng.standard_normal((count, 48)) * sizes).astype(np.float32)
    values[0], values[1, :8], values[2, 3] = 0, 1e-30, -8e6
    values[3, :8] = np.arange(8) + 0.5  # ties
    values[3, 7] = 127
    cache = Cache(BACKEND, heads, count, Setting(machine, kv_dtype=kv_dtype))
    cache.write(values, values, np.arange(count, dtype=np.int32) * 4)
    alone = np.ones(count, np.int32)
    index = {
        "query_starts": np.arange(count, dtype=np.int32),
        "query_lens": alone,
        "kv_lens": alone,
        "block_tables": np.arange(count, dtype=np.int32)[:, None],
    }
    got = cache.attend(np.zeros((count, 48), np.float32), index, 1.0)
    np.testing.assert_array_equal(got, KV_DTYPES[kv_dtype](values))


@pytest.mark.parametrize("kv_dtype", list(KV_LAYOUTS))
@pytest.mark.parametrize("flaw", [np.nan, np.inf])
def test_what_is_not_finite_is_not_lost(kv_dtype: str, flaw: float, machine: Machine) -> None:
    heads = Heads(1, 16, 4)
    values = np.ones((2, 16), np.float32)
    values[1, 5] = flaw
    cache = Cache(BACKEND, heads, 1, Setting(machine, kv_dtype=kv_dtype))
    cache.write(np.ones_like(values), values, np.arange(2, dtype=np.int32))
    one, two = np.array([1], np.int32), np.array([2], np.int32)
    index = {"query_starts": one - 1, "query_lens": one, "kv_lens": two, "block_tables": np.zeros((1, 1), np.int32)}
    assert not np.isfinite(cache.attend(np.ones((1, 16), np.float32), index, 1.0)[0, 5])


@pytest.mark.parametrize(("kv_dtype", "exact"), [*((name, True) for name in KV_LAYOUTS), ("bfloat16", False)])
@pytest.mark.parametrize("length", [1, 2, 3, 17])
def test_what_lies_behind_a_sequence_is_not_looked_at(
    kv_dtype: str, exact: bool, length: int, machine: Machine
) -> None:
    """A page's last owner may have left anything there."""
    heads, tokens = Heads(1, 16, 16), np.arange(32, dtype=np.int32)
    kernel = _attention(kv_dtype, exact=exact)
    results = []
    for left in (np.nan, 1.0):
        rows = np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)
        rows[length:] = left
        cache = Cache(BACKEND, heads, 2, Setting(machine, kv_dtype=kv_dtype), kernel)
        cache.write(rows, rows, tokens)
        one = np.ones(1, np.int32)
        index = {"query_starts": one - 1, "query_lens": one, "kv_lens": one * length, "block_tables": tokens[None, :2]}
        results.append(cache.attend(np.ones((1, 16), np.float32), index, 1.0).copy())
    assert np.isfinite(results[0]).all()
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("vocab", [16, 1000, 5003])
def test_filters_agree_with_a_sort(vocab: int, machine: Machine) -> None:
    rng = np.random.default_rng(vocab)
    logits = rng.choice(np.round(rng.standard_normal(vocab // 2), 2), (6, vocab)).astype(np.float32)  # with many ties
    probs = np.exp(4 * logits)
    probs = (probs / probs.sum(-1, keepdims=True)).astype(np.float32)
    for op, parameter, values, dtype in (
        ("top_k", "k", (1, 2, 5, 40, vocab - 1, vocab), np.int32),
        ("top_p", "p", (0.0, 0.1, 0.5, 0.9, 0.999, 0.7), np.float32),
    ):
        limits = np.array(values, dtype)
        kernel = next(kernel for kernel in BACKEND.kernels if kernel.op == op)
        dims = {"R": 6, "V": vocab}
        y = execute(kernel, Values({"probs": probs, parameter: limits}), dims, {}, Setting(machine, threads=2))["y"]
        for row, limit in enumerate(limits.tolist()):
            levels, counts = np.unique(probs[row], return_counts=True)
            weights = counts if op == "top_k" else counts * levels.astype(np.float64)
            above = weights.sum() - np.cumsum(weights)  # of all that is larger than a level
            bound = levels[(above < max(limit, 1e-9)) | (levels == levels[-1])].min()
            np.testing.assert_array_equal(y[row] > 0, probs[row] >= bound)
            np.testing.assert_allclose(y[row].sum(), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (NodeView("linear", "", dims={"M": 1, "K": 1 << 20, "N": 8}, formats={"weight": "Q2_K"}), "rows of 1048576"),
        (NodeView("classifier_argmax", "", dims={"M": 1 << 16, "K": 64, "N": 8}, formats={"weight": "F32"}), "tokens"),
        (NodeView("attention", "", attrs={"head_dim": 4096}), "heads of 4096"),
    ],
)
def test_what_would_not_fit_the_scratch_memory_is_refused(node: NodeView, said: str) -> None:
    kernel, why = why_not(BACKEND, BACKEND.kernels, node)
    assert kernel is None
    assert said in why


@pytest.mark.parametrize(("tokens", "vocab"), [(192, 49152), (96, 49152), (69, 151936), (147, 128256), (1, 49152)])
def test_best_of_a_large_vocabulary(tokens: int, vocab: int, machine: Machine) -> None:
    """Every chunk notes each token's best row in memory that all threads share; there is room for so many."""
    dims = {"M": tokens, "K": 1, "N": vocab}
    kernel, spec = _kernel("classifier_argmax", "F32"), ops.get("classifier_argmax")
    values = make_values(spec, Case(dims), {"weight": "F32"}, "float32", 0)
    weight = values.stored["weight"].numpy()[:, 0]
    want = np.where(values.arrays["x"][:, 0] > 0, weight.argmax(), weight.argmin())
    for threads in (1, 2):
        got = execute(kernel, values, dims, {}, Setting(machine, threads=threads))["ids"]
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("strips", [56, 63])
def test_the_best_of_many_tokens_is_kept_for_each(strips: int, threads: int, machine: Machine) -> None:
    """A value for each token and chunk must fit, however the strips of the vocabulary divide."""
    dims = {"M": 4096, "K": 256, "N": strips * 32}
    kernel = _kernel("classifier_argmax", "Q8_0", exact=False)
    values = make_values(ops.get("classifier_argmax"), Case(dims), {"weight": "Q8_0"}, "float32", 1)
    setting = Setting(machine, threads=threads)
    ids = execute(kernel, values, dims, {}, setting)["ids"]
    x = Values({"x": values.arrays["x"]}, values.stored)
    logits = execute(_kernel("linear", "Q8_0", exact=False), x, dims, {}, setting)["y"]
    assert (ids == logits.argmax(1)).all()

"""Sizes beyond the kit's: the same bits whatever the tile, the chunking, the batch and the number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from llmcore import ops
from llmcore.hookspecs import KernelInfo
from llmcore.ops import Case
from llmcore.registry.node import NodeView
from llmcore.testing.invoke import Machine, Setting, execute, why_not
from llmcore.testing.operands import Values, make_values
from llmcore.testing.state import Cache, Heads
from llmcore_numba.plugin import llmcore_backends

BACKEND = llmcore_backends()[0]


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine()


def _kernel(op: str, weight_format: str, *, exact: bool = True) -> KernelInfo:
    fitting = [kernel for kernel in BACKEND.kernels if kernel.op == op and kernel.formats == (weight_format,)]
    return next(kernel for kernel in fitting if kernel.exact is exact)


@pytest.mark.parametrize(
    ("weight_format", "exact"),
    [
        *((name, True) for name in ("F32", "BF16", "Q4_1", "Q6_K")),
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
        alone = execute(kernel, some, {**dims, "M": count}, {}, Setting(machine))["y"]
        np.testing.assert_array_equal(alone, together[200 : 200 + count])


@pytest.mark.parametrize("page_size", [16, 24, 64])
@pytest.mark.parametrize("heads", [Heads(3, 64, 0), Heads(1, 20, 0)])
def test_attention_of_a_prompt_in_any_chunks(heads: Heads, page_size: int, machine: Machine) -> None:
    length, query_heads = 150, 3 * heads.kv_heads
    heads = Heads(heads.kv_heads, heads.head_dim, page_size)
    rng = np.random.default_rng(0)
    pages = -(-length // page_size)
    table = rng.permutation(pages).astype(np.int32)
    token = np.arange(length)
    slots = (table[token // page_size] * page_size + token % page_size).astype(np.int32)
    q = rng.standard_normal((length, query_heads * heads.head_dim)).astype(np.float32)
    keys, values = rng.standard_normal((2, length, heads.kv_heads * heads.head_dim)).astype(np.float32)

    def prefill(chunk: int, threads: int) -> np.ndarray:
        cache = Cache(BACKEND, heads, pages, Setting(machine, threads=threads))
        out = []
        for first in range(0, length, chunk):
            rows = slice(first, min(first + chunk, length))
            cache.write(keys[rows], values[rows], slots[rows])
            index = {
                "query_starts": np.zeros(1, np.int32),
                "query_lens": np.array([rows.stop - first], np.int32),
                "kv_lens": np.array([rows.stop], np.int32),
                "block_tables": table[None],
            }
            out.append(cache.attend(q[rows], index, heads.head_dim**-0.5).copy())
        return np.concatenate(out)

    whole = prefill(length, threads=1)
    for chunk, threads in ((length, 3), (100, 2), (37, 1), (1, 2)):
        np.testing.assert_array_equal(prefill(chunk, threads), whole)


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
        (NodeView("linear", "", dims={"M": 1, "K": 1 << 20, "N": 8}, formats={"weight": "F16"}), "rows of 1048576"),
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

"""Triton's kernels over the KV cache conform; and what is their own: layouts, splits, grids.

In the interpreter on a choice of the kit's cases, on a GPU on all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, product
from typing import Any

import numpy as np
import pytest
import torch

from helpers.accelerator import NAME, accelerator, here, recorded_launches, there
from llmcore import ops
from llmcore.cache.layout import INT8_GROUP, KV_DTYPES, KVLayout
from llmcore.hookspecs import KernelInfo
from llmcore.ops import Case, tolerances
from llmcore.ops.cases import Ragged
from llmcore.plugins import resolve
from llmcore.registry.node import NodeView
from llmcore.testing.conformance import Check, checks, declaration_errors, run_case
from llmcore.testing.judge import compare
from llmcore.testing.operands import expected_writes, make_values

pytest.importorskip("triton")

from llmcore_triton import attention_decode as decode
from llmcore_triton import kv_examples, layout
from llmcore_triton.attention import attention
from llmcore_triton.configs import Config
from llmcore_triton.device import INTERPRETER, INTERPRETING, KNOWN
from llmcore_triton.kv_write import kv_write
from llmcore_triton.plugin import DTYPES, KV_LAYOUTS, llmcore_backends
from llmcore_triton.qkv import norms_heads, qkv_finish

BACKEND = llmcore_backends()[0]
WRITE, DECODE, ATTENTION = (kernel for kernel in BACKEND.kernels if kernel.op in ("kv_write", "attention"))
TYPES = tuple(zip(cycle(DTYPES), KV_LAYOUTS, strict=False))  # with each type of activations, one of the cache …
TYPES += tuple(zip(cycle((*DTYPES[1:], DTYPES[0])), KV_LAYOUTS, strict=False))  # … and another


def _few(kernel: KernelInfo, every: int) -> Iterator[Check]:
    """Each case of ``kernel`` with ``every`` pairs of types, different ones from case to case; a GPU takes all."""
    taken = [check for check in checks(BACKEND, kernel, accelerator()) if not check.unsupported()]
    if not INTERPRETING:
        yield from taken
        return
    pairs = cycle(TYPES)
    for case in {str(check.case): check.case for check in taken}.values():
        for _ in range(every):
            dtype, kv_dtype = next(pairs)
            yield Check(BACKEND, kernel, case, (), dtype, kv_dtype, taken[0].device)


def _run(kernel: KernelInfo, case: Case, **types: str) -> None:
    run_case(kernel, BACKEND, case, device=accelerator(), **types)


@pytest.mark.parametrize("kernel", (WRITE, DECODE, ATTENTION), ids=lambda kernel: kernel.target)
def test_declares_what_it_is(kernel: KernelInfo) -> None:
    assert declaration_errors(kernel, BACKEND) == []


@pytest.mark.parametrize("check", [*_few(WRITE, 1), *_few(DECODE, 2), *_few(ATTENTION, 1)], ids=lambda check: check.id)
def test_conforms(check: Check) -> None:
    check.run()


def _ints(numbers: Sequence[Any]) -> torch.Tensor:
    return there(torch.tensor(numbers, dtype=torch.int32))


def _case(batch: Ragged, heads: int, kv_heads: int, head_dim: int) -> Case:
    dims = {"T": sum(batch.query_lens), "D": heads * head_dim, "S": len(batch.query_lens), "B": batch.table_width}
    attrs = {"head_dim": head_dim, "kv_heads": kv_heads, "page_size": batch.page_size, "scale": head_dim**-0.5}
    return Case(dims, attrs, inputs=batch, one_each=set(batch.query_lens) == {1})


@pytest.mark.parametrize("kernel", (DECODE, ATTENTION), ids=lambda kernel: kernel.target)
@pytest.mark.parametrize(
    ("batch", "heads"),
    (
        (Ragged((1, 1), (1, 50), 4), (7, 1, 80)),  # Qwen2.5-7B's sharing; heads padded to 128
        (Ragged((1, 1), (33, 2), 32), (17, 1, 16)),  # more than 16 query heads of a key head; pages of two blocks
        (Ragged((1, 1), (20, 5), 16), (6, 3, 8)),  # several query heads of each of several key heads
        (Ragged((1,), (40,), 3), (2, 2, 20)),  # neither pages nor scales fit evenly
    ),
    ids=str,
)
def test_sizes_of_heads_and_pages(kernel: KernelInfo, batch: Ragged, heads: tuple[int, int, int]) -> None:
    for dtype, kv_dtype in (("float32", "int8"), ("float16", "float16")):
        _run(kernel, _case(batch, *heads), dtype=dtype, kv_dtype=kv_dtype)


@pytest.mark.parametrize("splits", (1, 2, 3, 5, 100))
def test_however_tokens_are_split(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One program, several, more than there are blocks; sequences that leave some or all but one without tokens."""
    monkeypatch.setattr(decode, "split_count", lambda *_: splits)
    monkeypatch.setattr(decode, "decode_config", lambda *_: Config({"BLOCK_N": 32, "PROGRAMS": 1}))
    _run(DECODE, _case(Ragged((1, 1, 1), (90, 1, 33), 16), 2, 1, 16))


def test_splits_keep_the_device_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """And are no more than blocks, nor than are combined at a time."""
    monkeypatch.setattr(decode, "target", lambda: INTERPRETER)
    assert decode.split_count(1, 1, blocks=1) == 1
    assert decode.split_count(1, 1, blocks=7) == 7
    assert decode.split_count(64, 8, blocks=1000) == 1
    multiprocessors = INTERPRETER.multiprocessors
    assert decode.split_count(1, 2, blocks=1000) == decode.PROGRAMS * multiprocessors // 2
    assert decode.split_count(1, 2, blocks=1000, programs=7) == 7 * multiprocessors // 2
    assert decode.split_count(1, 1, blocks=10**6) <= decode.MOST_SPLITS


def test_sequences_without_tokens_write_zeros() -> None:
    """A step of a captured graph may be padded with them."""
    for splits in (1, 2):
        q, kv = there(torch.randn(1, 16)), there(torch.full((3, *layout.FLOAT32.page_shape(1, 16, 16)), float("nan")))
        y, none = torch.full_like(q, float("nan")), there(torch.zeros(1, dtype=torch.int32))
        tables = there(torch.zeros(1, splits, dtype=torch.int32))
        decode.attention_decode(q, none, none, none, tables, kv, y, head_dim=16, kv_heads=1, page_size=16, scale=1.0)
        assert not here(y).any()


def test_large_scores_do_not_overflow() -> None:
    """Scores of some thousands: exponentials of those would be infinite, and of their negatives zero."""
    for sign in (1, -1):
        kv = there(torch.zeros(3, *layout.FLOAT32.page_shape(1, 16, 16)))
        keys, values = there(torch.full((32, 16), 50.0 * sign)), there(torch.randn(32, 16))
        kv_write(keys, values, _ints(range(16, 48)), kv, head_dim=16, page_size=16)
        q, y = there(torch.full((1, 16), 10.0)), there(torch.empty(1, 16))
        starts, one, length, page = _ints([0]), _ints([1]), _ints([32]), _ints([[1, 2]])
        for kernel in (attention, decode.attention_decode):
            y.fill_(float("nan"))
            kernel(q, starts, one, length, page, kv, y, head_dim=16, kv_heads=1, page_size=16, scale=1.0)
            torch.testing.assert_close(y, values.mean(0, keepdim=True), rtol=1e-5, atol=1e-5)


def test_prefill_longer_than_many_blocks() -> None:
    """A chunk with a past, beside a whole prompt: blocks without masks, with them, and rows of several query heads."""
    batch = Ragged((40, 0, 21, 1), (75, 3, 21, 60), 16)
    _run(ATTENTION, _case(batch, 3, 1, 16))


def test_nothing_is_launched_without_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = recorded_launches(monkeypatch)
    empty, none = there(torch.empty(0, 16)), _ints([])
    kv = there(torch.empty(1, *layout.FLOAT32.page_shape(1, 16, 16)))
    kv_write(empty, empty, none, kv, head_dim=16, page_size=16)
    for kernel in (attention, decode.attention_decode):
        tables = there(torch.empty(0, 1, dtype=torch.int32))
        kernel(empty, none, none, none, tables, kv, empty, head_dim=16, kv_heads=1, page_size=16, scale=1.0)
    assert not launches


def test_says_which_nodes_it_takes() -> None:
    def node(head_dim: int, one_each: bool) -> NodeView:
        return NodeView("attention", "", attrs={"head_dim": head_dim}, one_each=one_each)

    assert decode.one_each(node(128, True)) is None
    assert "more than one" in str(decode.one_each(node(128, False)))
    assert "257" in str(decode.one_each(node(257, True)))
    assert decode.head_fits(node(256, False)) is None
    assert "257" in str(decode.head_fits(node(257, False)))


# -- the cache -----------------------------------------------------------------------------------------------------


def _stored(kv: torch.Tensor, kv_dtype: str, side: int, slot: int, head_dim: int, page_size: int) -> np.ndarray:
    """The heads [G, head_dim] at ``slot``, read by what the layout's description says and not by a kernel."""
    page = here(kv[slot // page_size, side])
    token = slot % page_size
    if kv_dtype != "int8":
        return page[:, token].float().numpy()
    raw = page.numpy().view(np.uint8)
    codes = raw[:, token * head_dim :][:, :head_dim].view(np.int8)
    groups, begin = layout.groups(head_dim), layout.code_bytes(head_dim, page_size)
    scales = np.ascontiguousarray(raw[:, begin + 2 * token * groups :][:, : 2 * groups]).view(np.float16)
    return codes * np.repeat(scales.astype(np.float32), INT8_GROUP, axis=1)[:, :head_dim]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # some are infinite in float16
@pytest.mark.parametrize(("dtype", "kv_dtype"), tuple(product(DTYPES, KV_LAYOUTS)))
def test_a_cache_keeps_what_its_type_says_to_the_bit(dtype: str, kv_dtype: str) -> None:
    head_dim, kv_heads, page_size, tokens = 20, 3, 3, 4
    form: KVLayout = resolve(KV_LAYOUTS[kv_dtype])
    torch.manual_seed(0)
    scales = torch.tensor([[1e-9], [1.0], [3e4], [0.0]])  # scales that vanish, that are small, and large ones
    k, v = ((scales * torch.randn(tokens, kv_heads * head_dim)).to(getattr(torch, dtype)) for _ in "kv")
    k[1, 0], k[1, 1] = 127.0, 0.5  # a tie: rounds to even
    slots = torch.tensor([7, 3, 0, 8], dtype=torch.int32)
    kv = torch.zeros(3, *form.page_shape(kv_heads, head_dim, page_size), dtype=getattr(torch, form.dtype), device=NAME)
    kv_write(there(k), there(v), there(slots), kv, head_dim=head_dim, page_size=page_size)
    for token, slot in enumerate(slots.tolist()):
        for side, rows in enumerate((k, v)):
            want = KV_DTYPES[kv_dtype](rows[token].float().numpy().reshape(kv_heads, head_dim))
            np.testing.assert_array_equal(_stored(kv, kv_dtype, side, slot, head_dim, page_size), want)


def test_a_broken_key_stays_broken() -> None:
    """Int8 codes know no NaN: its group's scale says it, and others do not."""
    k = there(torch.ones(1, 16))
    k[0, 3] = float("nan")
    kv = there(torch.zeros(1, *layout.INT8.page_shape(1, 16, 4), dtype=torch.int8))
    kv_write(k, k, _ints([2]), kv, head_dim=16, page_size=4)
    kept = _stored(kv, "int8", 0, 2, 16, 4)
    assert np.isnan(kept[0, :8]).all()
    np.testing.assert_allclose(kept[0, 8:], 1, rtol=1e-3)


@pytest.mark.parametrize(("head_dim", "page_size"), ((128, 16), (64, 1), (20, 3), (8, 1)))
def test_heads_of_int8_pages_begin_where_wide_loads_may(head_dim: int, page_size: int) -> None:
    assert layout.code_bytes(head_dim, page_size) >= page_size * head_dim
    scales = layout.head_bytes(head_dim, page_size) - layout.code_bytes(head_dim, page_size)
    assert scales >= 2 * page_size * layout.groups(head_dim)
    assert layout.code_bytes(head_dim, page_size) % layout.ALIGNMENT == scales % layout.ALIGNMENT == 0


def test_int8_pages_of_usual_heads_waste_nothing() -> None:
    pages = layout.INT8.page_shape(8, 128, 16)
    assert int(np.prod(pages)) == 2 * 8 * 16 * (128 + 2 * 16)


# -- what ends the projections -------------------------------------------------------------------------------------

QKV = ops.get("qkv_rope_kv_write")


def _finish(case: Case, dtype: str, kv_dtype: str, *, merged: bool) -> None:
    """``qkv_finish`` of the reference's projections, against the whole op."""
    values = make_values(QKV, case, dict.fromkeys(("wq", "wk", "wv"), "F32"), "float32", seed=1)
    arrays = {name: torch.from_numpy(array) for name, array in values.arrays.items()}
    linear, weights = (
        ops.get("linear").reference,
        {n: torch.from_numpy(w.dequantize()) for n, w in values.stored.items()},
    )
    kind = getattr(torch, dtype)
    made = [linear(arrays["x"], weights[f"w{n}"], arrays.get(f"b{n}")).to(kind) for n in "qkv"]
    widths = [part.shape[1] for part in made]
    q, k, v = there(torch.cat(made, 1)).split(widths, 1) if merged else map(there, made)
    attrs, (tokens, width) = case.attrs, made[0].shape
    head_dim, page_size = attrs["head_dim"], attrs["page_size"]
    form: KVLayout = resolve(KV_LAYOUTS[kv_dtype])
    pages = int(arrays["slots"].max()) // page_size + 1 if tokens else 1
    page_shape = form.page_shape(k.shape[1] // head_dim, head_dim, page_size)
    kv = torch.zeros(pages, *page_shape, dtype=getattr(torch, form.dtype), device=NAME)
    guarded = there(torch.full((tokens + 1, width), 7.0, dtype=kind))
    given = [arrays.get(name) for name in ("positions", "slots", "nq", "nk", "cos", "sin")]
    qkv_finish(q, k, v, *(None if one is None else there(one) for one in given), kv, guarded[:tokens], **attrs)
    guarded = here(guarded)
    assert (guarded[tokens] == 7).all()
    want, keys, vals = expected_writes(QKV, values, attrs)
    factor = tolerances.relative(dtype)
    compare("q", guarded[:tokens].float().numpy(), want["q"], factor)
    for side, rows in enumerate((keys, vals)):
        got = [_stored(kv, kv_dtype, side, slot, head_dim, page_size).reshape(-1) for slot in arrays["slots"].tolist()]
        heads = rows.reshape(tokens, k.shape[1] // head_dim, head_dim)
        kept = KV_DTYPES[kv_dtype](heads).reshape(rows.shape)
        compare("kv"[side], np.array(got).reshape(rows.shape), kept, max(factor, 0 if kv_dtype == "float32" else 1e-2))


@pytest.mark.parametrize("number", range(1, 8))
def test_qkv_finish_is_the_rest_of_the_op(number: int) -> None:
    """Every case with rows, types in turn; projections apart, and as columns of one."""
    case = [case for case in QKV.cases() if case.dims["T"]][number % 6]
    dtype, kv_dtype = TYPES[number % len(TYPES)]
    _finish(case, dtype, kv_dtype, merged=number % 2 == 0)


def test_qkv_finish_to_the_roundings_of_float32() -> None:
    """Norms, pairs of both kinds and a part of each head that is not turned, where a wrong element cannot hide."""
    cases = [case for case in QKV.cases() if case.dims["T"] in (5, 7)]
    assert {case.attrs["interleaved"] for case in cases} == {True, False}
    assert any("nq" in case.present and 2 * case.dims["F"] < case.attrs["head_dim"] for case in cases)
    many = {**cases[0].dims, "T": 2, "D": 22 * 32, "G": 11 * 32}  # more key heads than a program takes
    for case in (*cases, replace(cases[0], dims=many)):
        _finish(case, "float32", "float32", merged=True)


def test_qkv_finish_of_no_tokens_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = recorded_launches(monkeypatch)
    case = next(case for case in QKV.cases() if not case.dims["T"])
    _finish(case, "float32", "float32", merged=False)
    assert not launches


def test_qkv_finish_says_which_norms_it_takes() -> None:
    def node(size: int, *present: str) -> NodeView:
        return NodeView("", "", dims={"C": size}, attrs={"head_dim": 64}, present=frozenset(present))

    assert norms_heads(node(64, "nq", "nk")) is None
    assert norms_heads(node(32)) is None
    assert "32" in str(norms_heads(node(32, "nq", "nk")))


# -- compiling ahead -----------------------------------------------------------------------------------------------


def test_launchers_work_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """They look at shapes alone, so that a step can be captured in a graph, and kernels compiled without a GPU."""
    launched = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> object:
            assert all(size > 0 for size in grid)
            return lambda *args, **options: launched.append((self.name, grid))

    for module, name in ((decode, "_decode"), (decode, "_combine")):
        monkeypatch.setattr(module, name, Recorder(name))
    for function, name in ((attention, "_attention"), (kv_write, "_write"), (qkv_finish, "_finish")):
        monkeypatch.setitem(function.__globals__, name, Recorder(name))
    for device in KNOWN.values():
        for module in (decode, sys.modules["llmcore_triton.attention"]):
            monkeypatch.setattr(module, "INTERPRETING", False)
            monkeypatch.setattr(module, "target", lambda device=device: device)
        labels = []
        for label, call in kv_examples.examples(kv_dtypes=tuple(KV_LAYOUTS)):
            call()
            labels.append(label)
        assert len(set(labels)) == len(labels)
    assert {name for name, _ in launched} == {"_decode", "_combine", "_attention", "_write", "_finish"}

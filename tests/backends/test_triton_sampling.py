"""Triton's sampling kernels conform; and what is their own: rows of many chunks, exact digits.

In the interpreter on a choice of the kit's cases, on a GPU on all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from helpers.accelerator import accelerator, here, recorded_launches, there
from llmcore import ops
from llmcore.hookspecs import KernelInfo
from llmcore.ops import Case
from llmcore.plugins import resolve
from llmcore.testing.conformance import Check, checks, declaration_errors
from llmcore_triton import largest as largest_module
from llmcore_triton import sampling
from llmcore_triton.device import INTERPRETING
from llmcore_triton.plugin import SAMPLING, llmcore_backends

BACKEND = llmcore_backends()[0]
SLOW = ("top_k", "top_p", "largest")  # in the interpreter


def _wanted(check: Check) -> bool:
    """Activations are of no concern to these ops: float32, and the other types once."""
    if not INTERPRETING:
        return True
    dims = check.case.dims
    if check.dtype != "float32":
        return dims["R"] == 3 and "N" not in dims
    if check.kernel.op in SLOW:
        return dims["V"] < 256 and dims["R"] < 10
    return dims["V"] < 1000


def _chosen() -> Iterator[Check]:
    return (check for kernel in SAMPLING for check in checks(BACKEND, kernel, accelerator()) if _wanted(check))


def _kernel(op: str) -> KernelInfo:
    return next(kernel for kernel in SAMPLING if kernel.op == op)


def _run(op: str, *inputs: torch.Tensor, **attrs: int) -> torch.Tensor:
    """What the kernel makes of ``inputs``, as its one output."""
    rows, width = inputs[0].shape
    param = ops.get(op).outputs[0]
    shape = {"R": rows, "V": width, "N": attrs.get("n", 0)}
    kind = torch.int32 if param.type == "i32" else torch.float32
    y = there(torch.full([shape[dim] for dim in param.dims], -9, dtype=kind))
    resolve(_kernel(op).target)(*map(there, inputs), y, **attrs)
    return here(y)


@pytest.mark.parametrize("check", list(_chosen()), ids=lambda check: check.id)
def test_conforms(check: Check) -> None:
    assert not check.unsupported()
    check.run()


@pytest.mark.parametrize("kernel", SAMPLING, ids=lambda kernel: kernel.op)
def test_declares_what_there_is(kernel: KernelInfo) -> None:
    assert declaration_errors(kernel, BACKEND) == []


@pytest.mark.parametrize("kernel", SAMPLING, ids=lambda kernel: kernel.op)
def test_rows_of_many_chunks(kernel: KernelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties, edges, NaN and infinities on both sides of a cut, and a row's bits whoever shares the batch."""
    for check in checks(BACKEND, kernel, accelerator()):
        dims = check.case.dims
        monkeypatch.setattr(sampling, "CHUNK", 32 if "N" in dims else 4 if dims["V"] < 20 else 16)
        if kernel.op in ("top_k", "top_p"):
            wanted = dims["R"] == 3 or check.case.note == "ties and edges"
        else:
            wanted = dims["V"] <= 41 and dims.get("N", 20) == 20
        if wanted and check.dtype == "float32":
            check.run(batch_invariance=dims["R"] == 3)


@pytest.mark.parametrize(("op", "at"), [("top_k", 1), ("top_k", 7), ("top_k", 16), ("top_p", 5), ("top_p", 12)])
def test_every_bit_decides(op: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probabilities that differ in their last bits only, one pair tied, beside far smaller and tiny ones."""
    monkeypatch.setattr(sampling, "CHUNK", 16)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(at))
    row = torch.cat((2.0**-5 * (1 + torch.arange(16) * 2.0**-23), 2.0**-9 * torch.rand(20), torch.full((4,), 1e-30)))
    row[3] = row[4]
    row = row[order][None]
    best = row.sort(descending=True).values[0, :at].double().sum()
    limit = torch.tensor([at], dtype=torch.int32) if op == "top_k" else best.float()[None]
    want = ops.get(op).reference(row, limit)
    got = _run(op, row, limit)
    assert torch.equal(got > 0, want > 0)
    torch.testing.assert_close(got, want)


def test_a_tail_too_small_for_float32_counts() -> None:
    """Each token of the tail is lost in a float32 sum; together they decide whether ``p`` is reached."""
    tail = 2.0**-26 * (1 + torch.arange(1000).flip(0) * 2.0**-12)  # no two are equal
    row = torch.cat((torch.tensor([0.5, 0.25]), tail))[None]
    p = (0.75 + 500 * 2.0**-26) * torch.ones(1)
    assert torch.equal(_run("top_p", row, p) > 0, ops.get("top_p").reference(row, p) > 0)
    u = torch.full((1,), (0.75 + 499.5 * 2.0**-26) / (0.75 + 1000 * 2.0**-26))
    assert _run("sample", row, u).item() == ops.get("sample").reference(row, u).item()


def test_no_draw_ends_between_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever ``u`` falls, in rows that begin and end with chunks of zeros, a token with some probability is drawn."""
    monkeypatch.setattr(sampling, "CHUNK", 4)
    row = torch.rand(1, 22, generator=torch.Generator().manual_seed(2))
    row[:, :6], row[:, 9:13], row[:, 19:] = 0, 0, 0
    probs = (row / row.sum()).repeat(9, 1)
    u = torch.tensor([0.0, 1e-9, 0.2, 0.4, 0.5, 0.6, 0.8, 0.99, 1 - 2.0**-24])
    got = _run("sample", probs, u)
    assert torch.equal(got, ops.get("sample").reference(probs, u))
    assert (probs[0, got] > 0).all()


def test_zeros_of_both_signs_are_equal() -> None:
    row = torch.tensor([[-1.0, -0.0, 0.0, -0.0]])
    assert _run("argmax", row).item() == 1
    assert _run("largest", row, n=4).tolist() == [[1, 2, 3, 0]]


def test_nan_anywhere_is_a_broken_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CHUNK", 4)
    logits = torch.randn(7, 6)
    logits[range(6), range(6)] = torch.tensor([float("nan"), -float("nan")] * 3)
    logits[:, 2] = torch.where(logits[:, 2].isnan(), logits[:, 2], float("inf"))
    assert _run("argmax", logits).tolist() == [-1] * 6 + [2]


def test_more_than_a_program_lists_is_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same order by either way."""
    logits = torch.randint(-3, 3, (2, 40)).float()
    logits[0, 7] = float("nan")
    want = ops.get("largest").reference(logits, n=9)
    assert torch.equal(_run("largest", logits, n=9), want)
    monkeypatch.setattr(largest_module, "MOST", 8)
    assert torch.equal(_run("largest", logits, n=9), want)


def test_launches_depend_on_shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher looks at data: tensors that have none will do. So a step can be captured, and kernels compiled."""
    launched = recorded_launches(monkeypatch)
    rows, vocab = 3, 151936
    made = {"f32": torch.float32, "i32": torch.int32}
    for kernel in SAMPLING:
        spec = ops.get(kernel.op)
        sizes = {"R": rows, "V": vocab, "N": 20}
        tensors = [
            torch.empty([sizes[dim] for dim in param.dims], dtype=made[param.type], device="meta")
            for param in spec.params
        ]
        before = len(launched)
        resolve(kernel.target)(*tensors, **dict.fromkeys(spec.attrs, 20))
        assert len(launched) > before
    assert {grid for grid in launched if len(grid) == 2} == {(rows, -(-vocab // sampling.CHUNK))}


def test_nothing_is_launched_for_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = recorded_launches(monkeypatch)
    for kernel in SAMPLING:
        for check in checks(BACKEND, kernel, accelerator()):
            if isinstance(check.case, Case) and check.case.dims["R"] == 0:
                check.run()
    assert not launched

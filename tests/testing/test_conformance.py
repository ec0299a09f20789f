"""The conformance kit passes right kernels and names what is wrong with the others."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from helpers.accelerator import accelerator
from llmcore import ops
from llmcore.hookspecs import BackendInfo, KernelInfo
from llmcore.testing.buffers import KernelMismatch, KernelRaised
from llmcore.testing.conformance import Check, checks, declaration_errors, kernels
from llmcore.testing.invoke import Machine
from llmcore_torch.plugin import llmcore_backends

TORCH = llmcore_backends()[0]
F32 = ("F32",)


def mine(op: str, name: str, **fields: object) -> KernelInfo:
    return KernelInfo(op, f"helpers.wrong_kernels:{name}", **fields)  # type: ignore[arg-type]


def native(op: str, name: str) -> KernelInfo:
    return KernelInfo(op, f"helpers.wrong_native:{name}", abi="native")


def dense(name: str) -> KernelInfo:
    """A right linear kernel over a layout that is packed by ``name``."""
    pack = f"helpers.wrong_kernels:{name}"
    return mine("linear", "linear", formats=("F32", "Q4_1"), pack=pack, layout=("mine", 1))


def backend(*kernels: KernelInfo) -> BackendInfo:
    return BackendInfo("mine", "kernels under test", kernels)


def over_torch_pages(op: str, name: str) -> tuple[BackendInfo, KernelInfo]:
    """The torch backend with its kernel of ``op`` replaced by a wrong one."""
    wrong = KernelInfo(op, f"helpers.wrong_kv:{name}", view="torch", group="kv")
    others = tuple(kernel for kernel in TORCH.kernels if kernel.op != op)
    return replace(TORCH, kernels=(wrong, *others)), wrong


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine()


def complaint(owner: BackendInfo, kernel: KernelInfo, machine: Machine, *, batch_invariance: bool = False) -> str:
    """What the first failing check says; empty where all pass."""
    for check in checks(owner, kernel):
        assert not check.unsupported()
        try:
            check.run(machine, batch_invariance=batch_invariance)
        except KernelMismatch as error:
            return str(error)
    return ""


@pytest.mark.parametrize(
    "kernel",
    [
        mine("rms_norm", "rms_norm"),
        mine("add", "add"),
        mine("argmax", "argmax"),
        mine("linear", "linear", formats=F32),
        dense("dense"),
        mine("linear", "linear_int8", formats=F32, exact=False),
        mine("classifier_argmax", "classifier", formats=F32),
        native("add", "add"),
        native("rope", "rope"),
    ],
    ids=lambda kernel: f"{kernel.target}{kernel.pack}",
)
def test_right_kernels_pass(kernel: KernelInfo, machine: Machine) -> None:
    assert declaration_errors(kernel, backend(kernel)) == []
    assert complaint(backend(kernel), kernel, machine) == ""


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (mine("rms_norm", "rms_norm_other_eps"), r"output y: beyond the tolerance: \d+ of 192"),
        (mine("rms_norm", "rms_norm_eps_outside"), "output y: beyond the tolerance"),
        (mine("rms_norm", "rms_norm_whole_rows"), "output y: beyond the tolerance"),
        (mine("rms_norm", "rms_norm_clobbers"), "x: was changed, though the op only reads it"),
        (mine("rms_norm", "rms_norm_returns"), "output y: not written, or NaN: 1 of 1 elements"),
        (mine("add", "add_not_in_place"), "y in the memory of b.*beyond the tolerance"),
        (mine("add", "add_accumulates"), "not written, or NaN"),
        (mine("add", "add_past_the_end"), "y: 4 bytes outside it were overwritten, first 0 bytes past its end"),
        (mine("add", "add_before_the_start"), "y: 4 bytes outside it were overwritten, first 4 bytes before its start"),
        (mine("add", "add_forgets_last_row"), r"not written, or NaN: 1 of 1 elements, first at \[0, 0\]"),
        (mine("add", "add_raises"), "raised ValueError: the kernel's own words"),
        (mine("add", "add_other_signature"), "raised TypeError"),
        (mine("linear", "linear_ignores_bias", formats=F32), "beyond the tolerance"),
        (mine("linear", "linear_half_precision", formats=F32), "beyond the tolerance"),
        (mine("linear", "linear_int8", formats=F32), "beyond the tolerance"),
        (mine("linear", "linear_ignores_bias", formats=F32, exact=False), "beyond the tolerance"),
        (mine("classifier_argmax", "classifier_second_best", formats=F32), "not the best of its row"),
        (mine("classifier_argmax", "classifier_outside", formats=F32), "not a column"),
        (mine("classifier_argmax", "classifier_hides_nan", formats=F32), "not -1 for NaN: 1 of 1 elements"),
        (dense("dense_other_scale"), "beyond the tolerance"),
        (dense("dense_transposed"), "must return a C-contiguous numpy array"),
        (mine("argmax", "argmax_last_of_equals"), r"output ids: \d+ of 9 elements"),
        (mine("argmax", "argmax_prefers_nan"), "output ids: 3 of 5 elements.* should be -1"),
        (mine("softmax", "softmax_overflows"), "not written, or NaN"),
        (mine("top_p", "top_p_drops_the_last"), "output y: "),
        (mine("top_k", "top_k_unnormalised"), "output y: beyond the tolerance"),
        (mine("top_k", "top_k_breaks_ties"), "output y: "),
        (mine("sample", "sample_reaches"), "output ids: "),
        (native("add", "add_one_row_too_many"), "y: .* bytes outside it were overwritten"),
        (native("add", "add_divides_by_threads"), "of which only the first came.*not written"),
        (native("add", "add_past_its_scratch"), "scratch of thread 0: 8 bytes outside it were overwritten"),
        (native("add", "add_past_first_scratch"), "scratch of thread 0: 8 bytes outside it were overwritten"),
        (native("rope", "rope_attributes_in_other_order"), "output y: "),
    ],
    ids=lambda value: value.target.rpartition(":")[2] + value.pack[-6:] if isinstance(value, KernelInfo) else "",
)
def test_wrong_kernels_are_caught(kernel: KernelInfo, says: str, machine: Machine) -> None:
    said = complaint(backend(kernel), kernel, machine)
    assert said.startswith(f"{kernel.op} ({kernel.target}; ")
    assert re.search(says, said), said


@pytest.mark.parametrize(
    ("op", "name", "says"),
    [
        ("kv_write", "write_swaps", "attention reading page"),
        ("kv_write", "write_next_slot", "pages .* were written|attention reading page"),
        ("kv_write", "write_elsewhere_too", r"kv: pages \[0\] were written, though no slot is in them"),
        ("attention", "see_less", "output y: beyond the tolerance"),
        ("attention", "see_more", "output y: "),
        ("attention", "not_causal", "output y: beyond the tolerance"),
        ("attention", "pages_in_order", "output y: beyond the tolerance"),
        ("attention", "unscaled", "output y: beyond the tolerance"),
        ("attention", "heads_dealt_out", "output y: beyond the tolerance"),
    ],
)
def test_wrong_caches_are_caught(op: str, name: str, says: str, machine: Machine) -> None:
    said = complaint(*over_torch_pages(op, name), machine)
    assert re.search(says, said), said


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("torch_add", ""),
        ("torch_add_clobbers", r"a: was changed, though the op only reads it"),
        ("torch_add_past_the_end", r"y: 4 bytes outside it were overwritten, first 0 bytes past its end"),
        ("torch_add_before_the_start", r"y: 4 bytes outside it were overwritten, first 4 bytes before its start"),
    ],
)
def test_operands_and_their_guards_go_to_a_device_and_back(name: str, says: str, machine: Machine) -> None:
    device = accelerator()
    kernel = mine("add", name, view="torch", devices=("cpu", "cuda"))
    said = ""
    for check in checks(backend(kernel), kernel, device):
        assert not check.unsupported()
        try:
            check.run(machine)
        except KernelMismatch as error:
            said = str(error)
            break
    assert bool(said) == bool(says) and re.search(says, said), said
    assert not said or f"on {device.name}" in said


def test_a_kernel_that_raises_keeps_its_traceback(machine: Machine) -> None:
    kernel = mine("add", "add_raises")
    with pytest.raises(KernelRaised) as caught:
        next(checks(backend(kernel), kernel)).run(machine)
    assert isinstance(caught.value.__cause__, KernelRaised)
    assert isinstance(caught.value.__cause__.__cause__, ValueError)


def test_batch_invariance_is_asked_for_only_where_wanted(machine: Machine) -> None:
    kernel = mine("linear", "linear_depends_on_batch", formats=F32)
    assert complaint(backend(kernel), kernel, machine) == ""
    assert "depends on who shares the batch" in complaint(backend(kernel), kernel, machine, batch_invariance=True)
    invariant = native("rope", "rope")
    assert complaint(backend(invariant), invariant, machine, batch_invariance=True) == ""


def test_fused_ops_are_judged_by_their_parts(machine: Machine) -> None:
    """A right fused kernel and a wrong one, over the torch backend's cache."""
    right, wrong = (
        KernelInfo("qkv_rope_kv_write", f"helpers.fused_kernels:{name}", view="torch", formats=F32, group="kv")
        for name in ("qkv", "qkv_norm_after_rope")
    )
    owner = replace(TORCH, kernels=(*TORCH.kernels, right, wrong))
    assert complaint(owner, right, machine) == ""
    assert "beyond the tolerance" in complaint(owner, wrong, machine)


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (mine("linear", "linear"), "names no weight formats"),
        (mine("add", "add", formats=F32), "names formats, but add has no such weight"),
        (mine("linear", "linear", formats=("Q9",)), "format 'Q9' is unknown"),
        (mine("add", "add", dtypes=("float8",)), "dtype 'float8' has no tolerance"),
        (mine("linear", "linear", formats=F32, pack="helpers.wrong_kernels:dense"), "pack and layout go together"),
        (mine("add", "ad"), "cannot import 'helpers.wrong_kernels:ad'"),
        (mine("add", "add", supported="helpers.wrong_kernels:nothing_at_all"), "takes no case of add: mine: busy"),
        (replace(over_torch_pages("attention", "unscaled")[1], group=""), 'needs group="kv"'),
        (over_torch_pages("attention", "unscaled")[1], "KV cache of float32, but its backend names no layout"),
    ],
    ids=lambda value: "" if isinstance(value, KernelInfo) else value,
)
def test_contradictions_in_a_declaration_are_named(kernel: KernelInfo, says: str) -> None:
    assert any(says in error for error in declaration_errors(kernel, backend(kernel)))


def test_a_pair_needs_both_halves(machine: Machine) -> None:
    owner, kernel = over_torch_pages("kv_write", "write_swaps")
    alone = replace(owner, kernels=(kernel,))
    assert "the backend's own attention is needed to test its cache" in complaint(alone, kernel, machine)


def test_every_format_of_a_kernel_is_checked() -> None:
    kernel = next(kernel for kernel in kernels(TORCH, ["linear"]) if kernel.pack)
    seen = {dict(check.formats)["weight"] for check in checks(TORCH, kernel)}
    assert seen == set(kernel.formats)


def test_fused_weights_are_checked_in_mixed_formats_too() -> None:
    kernel = mine("gate_up_swiglu", "linear", formats=("Q4_K", "Q6_K"))
    assert {check.formats for check in checks(backend(kernel), kernel)} == {
        (("gate", "Q4_K"), ("up", "Q4_K")),
        (("gate", "Q6_K"), ("up", "Q6_K")),
        (("gate", "Q4_K"), ("up", "Q6_K")),
    }


def test_check_names_are_unique_and_tell_what_they_check() -> None:
    ids = [check.id for kernel in TORCH.kernels for check in checks(TORCH, kernel)]
    assert len(ids) == len(set(ids))
    assert "linear.call Q4_K M7,K768,N40 bias" in ids


@pytest.mark.parametrize("op", ops.NAMES)
def test_every_op_has_cases(op: str) -> None:
    """With empty steps and with odd sizes among them, and each makes the values that it says."""
    spec = ops.get(op)
    assert spec.cases is not None
    found = list(spec.cases())
    assert any(0 in case.dims.values() for case in found)
    assert any(size % 2 for case in found for size in case.dims.values())
    formats = tuple((param.name, "F32") for param in spec.of("weight") if param.type == "any")
    kernel = KernelInfo(op, "", formats=F32)
    for case in found:
        assert set(case.attrs) == set(spec.attrs)
        assert set(case.dims) == set(spec.dims)
        assert Check(backend(kernel), kernel, case, formats, "float32").unsupported() == ""

"""``llmcore gpu-compile``: real graphs' calls, recorded and compiled without a GPU; its page; its verdicts."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import gpu_kernels
from llmcore.cli.main import main
from llmcore.errors import PluginError
from llmcore.testing.operands import random_weight
from llmcore.weights.formats import tensor_format
from llmcore_tools.gpu import compile as gpu_compile
from llmcore_tools.gpu.packed_shape import packed_shape
from llmcore_tools.gpu.report import Found, as_json, as_markdown, as_text, differences, page_rows, page_version
from llmcore_tools.gpu.workload import Argument, Call, Step, Workload, calls_of
from llmcore_triton import device
from llmcore_triton.plugin import llmcore_backends

PAGE = Path(__file__).parents[2] / "docs" / "gpu-kernels-compiled.md"
SMALL = Workload(("llama-3.2-1b",), ("BF16",), ("bfloat16",), (Step(8, 8), Step(2048, 1)))


sys.modules.setdefault("own_packers", sys.modules[__name__])  # a name that import strings can say


# packed shapes


def flat(tensor: Any) -> np.ndarray[Any, Any]:
    """Tiles one behind the other, and a number for each row."""
    tiles = gpu_kernels.padded(tensor)
    return np.concatenate([tiles.reshape(-1), np.zeros(tensor.shape[0], np.float16)])


def odd(tensor: Any) -> np.ndarray[Any, Any]:
    """Rows padded to more than the tiles that shapes are told by."""
    return np.zeros((-(-tensor.shape[0] // 768), 768, tensor.shape[1]), np.float16)


@pytest.mark.parametrize("form", ["BF16", "Q8_0"])
@pytest.mark.parametrize("shape", [(2048, 2048), (1100, 1600), (64, 2080)])
def test_packed_shapes(form: str, shape: tuple[int, int]) -> None:
    """As if it had been packed, padding included."""
    weight = random_weight("w", shape, tensor_format(form), np.random.default_rng(1))
    made = gpu_kernels.padded(weight)
    assert packed_shape("helpers.gpu_kernels:padded", form, shape) == (made.shape, "float16")
    assert packed_shape("own_packers:flat", form, shape) == (flat(weight).shape, "float16")


@pytest.mark.parametrize("kernel", [k for b in llmcore_backends() for k in b.kernels if k.pack and k.op == "linear"])
def test_packed_shapes_of_the_backend(kernel: Any) -> None:
    """For every layout there is."""
    from llmcore.plugins import resolve

    form = "Q4_1" if "Q4_1" in kernel.formats else kernel.formats[0]
    weight = random_weight("w", (1184, 1824), tensor_format(form), np.random.default_rng(1))
    made = resolve(kernel.pack)(weight)
    assert packed_shape(kernel.pack, form, (1184, 1824)) == (made.shape, made.dtype.name)


def test_shapes_of_weights_that_are_read_as_they_lie_in_the_file() -> None:
    assert packed_shape("", "BF16", (100, 64)) == ((100, 64), "bfloat16")
    assert packed_shape("", "F32", (100, 64)) == ((100, 64), "float32")
    assert packed_shape("", "Q4_1", (100, 64)) == ((100, 40), "uint8")


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(PluginError, match="tiles"):
        packed_shape("own_packers:odd", "BF16", (2048, 512))


# calls


def calls(workload: Workload = SMALL, backends: Any = None) -> dict[str, list[Call]]:
    """The calls of a workload by op."""
    found: dict[str, list[Call]] = {}
    for call in calls_of(backends or llmcore_backends(), workload).places:
        found.setdefault(call.kernel.op, []).append(call)
    return found


def shapes(call: Call) -> dict[str, Argument]:
    return {argument.name: argument for argument in call.arguments if argument is not None}


def test_calls_are_those_of_the_model() -> None:
    """All matrices of the model, at all sizes; logits are float32; what is not there is absent."""
    linear = [shapes(call) for call in calls()["linear"]]
    sizes = {(each["x"].shape[0], *each["y"].shape[1:], each["x"].shape[1]) for each in linear}
    assert sizes >= {(8, 2048, 2048), (8, 512, 2048), (8, 8192, 2048), (8, 2048, 8192), (2048, 8192, 2048)}
    logits = [each["y"] for each in linear if each["y"].shape[1] == 128256]
    assert {each.dtype for each in logits} == {"float32"} and {each.shape[0] for each in logits} == {8, 1}
    assert all(each["y"].dtype == "bfloat16" for each in linear if each["y"].shape[1] != 128256)
    assert all("bias" not in each for each in linear)


def test_biases_and_head_norms_are_those_of_the_family() -> None:
    qwen2 = [shapes(call) for call in calls(replace(SMALL, models=("qwen2.5-7b",)))["linear"]]
    assert {each["bias"].shape for each in qwen2 if "bias" in each} == {(3584,), (512,)}
    norms = [shapes(call)["weight"].shape for call in calls(replace(SMALL, models=("qwen3-8b",)))["rms_norm"]]
    assert set(norms) == {(4096,), (128,)}


def test_steps_of_one_token_each_may_have_a_kernel_of_their_own() -> None:
    found = calls()["attention"]
    by_tokens = {shapes(call)["q"].shape[0]: call.kernel.target for call in found}
    assert by_tokens[8] != by_tokens[2048], "decode has its own"
    assert {shapes(call)["kv"].shape[0] for call in found} == {8 * 512, 512}, "whole contexts"


def test_rope_is_interleaved_where_files_store_it_so() -> None:
    workload = replace(SMALL, models=("llama-3.2-1b", "qwen3-8b"), formats=("BF16", "Q8_0"))
    found = calls_of(llmcore_backends(), workload).places
    kinds = {
        (place.split(",")[0], dict(call.attrs)["interleaved"])
        for call, places in found.items()
        if call.kernel.op == "rope"
        for place in places
    }
    assert kinds == {
        ("llama-3.2-1b BF16", False),
        ("llama-3.2-1b Q8_0", True),
        ("qwen3-8b BF16", False),
        ("qwen3-8b Q8_0", False),
    }


def test_ops_without_a_kernel_and_parts_of_fused_ones() -> None:
    found = calls_of(gpu_kernels.good(), SMALL)
    assert "attention" in found.missing and "add" not in found.missing
    ours = calls_of(llmcore_backends(), SMALL)
    assert not ours.missing, "a decode step runs on this backend alone"
    ops = {call.kernel.op for call in ours.places}
    assert {"gate_up_swiglu", "swiglu", "linear_add", "add", "classifier_argmax", "argmax", "top_p"} <= ops


# the device that is pretended


def test_pretending() -> None:
    before = device.target()
    with device.pretend("gfx942") as outer:
        assert device.target() is outer is device.KNOWN["gfx942"]
        with pytest.raises(ZeroDivisionError), device.pretend("sm_80"):
            assert device.target().capability == 80
            raise ZeroDivisionError
        assert device.target().name == "gfx942"
    assert device.target() == before


# compiled by processes


@pytest.fixture(scope="module")
def good() -> Found:
    """Good kernels for two makers' GPUs."""
    return gpu_compile.compiled(("sm_90", "gfx942"), SMALL, 1, backends="helpers.gpu_kernels:good")


@pytest.fixture(scope="module")
def bad() -> Found:
    """Bad ones for one."""
    workload = replace(SMALL, steps=(Step(2048, 1),))
    return gpu_compile.compiled(("sm_90",), workload, 1, backends="helpers.gpu_kernels:bad")


def test_good_kernels(good: Found) -> None:
    """On an AMD GPU, 256 threads of the same tile load 8 bytes each; the other target has 128 threads."""
    table = {(row.kernel.rpartition(":")[2], row.target): row for row in good.rows}
    add, amd = table["add_kernel", "sm_90"], table["add_kernel", "gfx942"]
    assert (add.verdict, add.spills, add.wide) == ("ok", 0, 1.0) and 8 <= add.registers < 40
    assert (amd.verdict, amd.wide) == ("narrow loads (1)", 0.0)
    assert table["linear_kernel", "sm_90"].matrix == ("HGMMA",) and table["linear_kernel", "gfx942"].matrix == (
        "v_mfma",
    )
    assert table["linear_kernel", "sm_90"].wide == 1.0 and table["linear_kernel", "sm_90"].verdict == "ok"
    assert table["linear_kernel", "sm_90"].shared == 32768, "two stages of two tiles [64, 64]"
    assert good.uncalled == ["helpers.gpu_kernels:linear_of_f16"] and not good.problems


def test_variants_are_specialized_as_launches_are(good: Found) -> None:
    """8 rows, 2048 rows and one row of logits are three ways to compile; their type is the fourth."""
    linear = [each for each in good.variants if each.kernel.endswith("linear_kernel") and each.target == "sm_90"]
    assert sorted(each.types[2] for each in linear) == ["*bf16", "*bf16", "*fp32", "*fp32"]
    assert [each.constants.get("rows") for each in linear].count("1") == 1
    assert all(
        each.constants["BLOCK_K"] == "64" and each.options == {"num_warps": 4, "num_stages": 2} for each in linear
    )
    largest = max(linear, key=lambda each: prod(each.grid))
    assert largest.grid == [32, 128] and any("prefill 2048" in place for place in largest.places)


def test_every_bad_kernel_is_found_out(bad: Found) -> None:
    said = {row.kernel.rpartition(":")[2]: row.verdict for row in bad.rows}
    assert said["spilling_kernel"] == "spills (1)"
    assert "narrow loads (1)" in said["add_kernel"] and "does not compile (1)" in said["add_kernel"]
    assert "a dot of float32 (2)" in said["linear_kernel"] and "shared memory (1)" in said["linear_kernel"]
    failed = {where.partition(" ")[0].rpartition(":")[2]: what for where, what in bad.problems}
    assert set(failed) == {"syncing_rms_norm", "huge_gather", "empty_embedding"}
    assert "meta tensors" in failed["syncing_rms_norm"] and "gpu_kernels.py" in failed["syncing_rms_norm"]
    assert "(1, 65536)" in failed["huge_gather"] and "(0,)" in failed["empty_embedding"]
    wrong = [variant.error for variant, _ in bad.faults if variant.error]
    assert len(wrong) == 1 and "power of 2" in wrong[0]
    text = as_text(bad)
    assert "narrow loads: 8 of 2 bytes" in text and "power of 2" in text
    assert "launcher failed: helpers.gpu_kernels:huge_gather" in text


def test_a_page_is_read_back(good: Found) -> None:
    """What is written is what is compared: each number, each row, and the text around them."""
    page = as_markdown(good)
    assert differences(page, good) == []
    name = "helpers.gpu_kernels.linear_kernel"
    assert differences(page.replace("| HGMMA |", "| HMMA |"), good) == [f"{name} on sm_90: matrix is HGMMA, not HMMA"]
    without = "\n".join(line for line in page.splitlines() if not line.startswith(f"| {name} | gfx942")) + "\n"
    assert differences(without, good) == [f"{name} on gfx942 is not in it"]
    fewer = replace(good, variants=[each for each in good.variants if each.target == "sm_90"])
    assert sorted(differences(page, fewer))[0] == "helpers.gpu_kernels.add_kernel on gfx942 is no longer there"
    assert differences(page.replace("Nothing was run.", "All was run."), good) == ["the text around the table differs"]


def test_of_another_triton_only_verdicts_are_compared(good: Found) -> None:
    other = as_markdown(replace(good, triton="9.9.9"))
    assert differences(other.replace("| HGMMA |", "| HMMA |"), good) == []
    changed = other.replace("| narrow loads (1) |", "| ok |")
    assert differences(changed, good) == ["helpers.gpu_kernels.add_kernel on gfx942: verdict is at fault, not ok"]
    assert as_json(good)["triton"] == good.triton


def test_commands_refuse_what_makes_no_sense(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, words in (
        (["--targets", "sm_91"], "sm_90"),
        (["--models", "llama"], "llama-3.1-8b"),
        (["--formats", "Q9"], "Q8_0"),
        (["--batches", "0"], "from 1 on"),
        (["--check", str(tmp_path / "no.md")], "no.md"),
        (["surplus"], "surplus"),
    ):
        assert main(["gpu-compile", *arguments]) == 2
        assert words in capsys.readouterr().err


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, good: Found, bad: Found, tmp_path: Path) -> None:
    page, clean = tmp_path / "p.md", [each for each in good.variants if each.target == "sm_90"]
    monkeypatch.setattr(gpu_compile, "compiled", lambda *_args, **_more: replace(good, variants=clean))
    assert main(["gpu-compile", "--write", str(page)]) == 0
    assert main(["gpu-compile", "--check", str(page)]) == 0
    monkeypatch.setattr(gpu_compile, "compiled", lambda *_args, **_more: bad)
    assert main(["gpu-compile"]) == 1 and main(["gpu-compile", "--check", str(page), "--json"]) == 1


# the backend's own kernels

needs_page = pytest.mark.skipif(not PAGE.is_file(), reason=f"llmcore gpu-compile --write docs/{PAGE.name} makes it")


@needs_page
def test_the_page_knows_every_kernel_and_target() -> None:
    """Without compiling: which kernels are launched for each target, and how many variants there are of each."""
    found = gpu_compile.compiled(("sm_90",), Workload(), 1, compile=False)
    assert not found.problems and not found.missing
    page = PAGE.read_text(encoding="utf-8")
    written = {kernel: int(row[2]) for (kernel, target), row in page_rows(page).items() if target == "sm_90"}
    assert {row.cells[0]: row.variants for row in found.rows} == written, "make it anew"


@needs_page
def test_a_decode_step_of_the_backend_compiles() -> None:
    """Without a fault, for the GPU that we know best; numbers are no worse than the page's."""
    workload = Workload(("llama-3.2-1b",), ("Q8_0",), ("bfloat16",), (Step(1, 1),))
    found = gpu_compile.compiled(("sm_90",), workload, 2)
    assert found.rows and not found.problems and not found.faults, as_text(found)
    page = PAGE.read_text(encoding="utf-8")
    written = page_rows(page)
    for row in found.rows:
        there = written[row.cells[0], row.cells[1]]
        if page_version(page) == found.triton:
            _, _, *numbers, shared = row.cells[:6]
            assert all(int(ours) <= int(theirs) for ours, theirs in zip(numbers, there[2:5], strict=True))
            assert float(shared) <= float(there[5])


@needs_page
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_page_is_true() -> None:
    """All of it, compiled anew."""
    found = gpu_compile.compiled(tuple(device.KNOWN), Workload(), os.cpu_count() or 1)
    assert differences(PAGE.read_text(encoding="utf-8"), found) == []

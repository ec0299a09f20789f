"""Linear layers of the Triton backends: a part of the conformance kit, and what no case of it reaches.

A GPU takes the whole kit here; the interpreter, by hand: ``TRITON_INTERPRET=1 pytest --pyargs llmcore.testing
--backend triton --op linear`` and so on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from helpers.accelerator import NAME, accelerator, here, recorded_launches, there
from llmcore import ops
from llmcore.hookspecs import KernelInfo
from llmcore.ops import Case
from llmcore.testing.buffers import KernelMismatch
from llmcore.testing.conformance import Check, check_values, checks, declaration_errors, run_case, settings
from llmcore.testing.invoke import Machine, Setting
from llmcore.testing.operands import make_values, random_weight
from llmcore.weights.formats import FORMATS
from llmcore.weights.tensor import Tensor
from llmcore_triton import fp8, w8a8
from llmcore_triton.classifier import REDUCE, choose_kernel, classifier_argmax
from llmcore_triton.device import INTERPRETING
from llmcore_triton.linear import linear
from llmcore_triton.linear_plan import FEW_PACKED, plan
from llmcore_triton.linear_qkv import project3
from llmcore_triton.linear_tile import product
from llmcore_triton.packed import packed_values
from llmcore_triton.packed_rows import dequantized
from llmcore_triton.packing import BYTES, FORMS, GROUPS, pack
from llmcore_triton.plugin import QUANTIZED, llmcore_backends
from llmcore_triton.quantized_packing import pack_fp8, pack_int8

BACKENDS = {backend.name: backend for backend in llmcore_backends()}
TRITON = BACKENDS["triton"]
OPS = ("linear", "linear_add", "gate_up_swiglu", "classifier_argmax")
KERNELS = [kernel for kernel in TRITON.kernels if kernel.op in OPS]
COARSE = [kernel for name in ("triton_w8a8", "triton_fp8") for kernel in BACKENDS[name].kernels]

NO_FLOAT8 = fp8.ready()
FLOAT8 = pytest.mark.skipif(NO_FLOAT8 is not None, reason=NO_FLOAT8 or "")
KINDS = pytest.mark.parametrize(
    ("kind", "pack_rows"),
    [pytest.param(w8a8, pack_int8, id="int8"), pytest.param(fp8, pack_fp8, id="fp8", marks=FLOAT8)],
)

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy, where a GPU says infinity


def parts(kernel: KernelInfo) -> Iterator[Check]:
    """Of each dtype and assignment of formats one check with one token and one with more; of packed formats and other
    ops than ``linear`` a third of the dtypes.

    float16 cannot hold what gates and K-quants of the kit multiply to. A GPU takes all.
    """
    every = checks(TRITON, kernel, accelerator())
    if not INTERPRETING:
        yield from every
        return
    groups: dict[tuple[object, ...], list[Check]] = {}
    for check in every:
        if check.case.dims["M"] > 0 and max(check.case.dims.values()) <= 576:
            groups.setdefault((check.dtype, check.formats, check.case.dims["M"] > 1), []).append(check)
    for i, ((dtype, formats, several), found) in enumerate(groups.items()):
        names = dict.fromkeys(name for _, name in formats)
        turn = sum(QUANTIZED.index(name) for name in names if name in QUANTIZED) + OPS.index(kernel.op)
        exactest = kernel.op == "linear" and dtype == "float32"
        too_large = kernel.op == "gate_up_swiglu" and dtype == "float16" and any("_K" in name for name in names)
        if not packed(kernel) or exactest or (turn % 3 == kernel.dtypes.index(dtype) and not too_large):
            yield found[(i + turn + several) % len(found)]


def packed(kernel: KernelInfo) -> bool:
    return kernel.layout == GROUPS


@pytest.mark.parametrize(
    "kernel", KERNELS, ids=lambda kernel: f"{kernel.op}-{'+'.join(kernel.formats)}-{kernel.dtypes}"
)
def test_conforms(kernel: KernelInfo) -> None:
    """Under all settings where that may matter; packed weights differ in the inside of products only."""
    assert declaration_errors(kernel, TRITON) == []
    for check in parts(kernel):
        spec, formats = ops.get(kernel.op), dict(check.formats)
        values = make_values(spec, check.case, formats, check.dtype, 0)
        every = list(settings(spec, kernel, Setting(Machine(), check.dtype, device=check.device)))
        for setting in every[-1:] if packed(kernel) and INTERPRETING else every:
            check_values(kernel, TRITON, check.case, values, setting)


@pytest.mark.parametrize("op", OPS)
def test_no_tokens_are_no_launch(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = recorded_launches(monkeypatch)
    kernel = next(kernel for kernel in KERNELS if kernel.op == op)
    letter = "F" if op == "gate_up_swiglu" else "N"
    _run(kernel, Case({"M": 0, "K": 32, letter: 8}), _same(op, "BF16"), "bfloat16")
    assert not launches


def _run(kernel: KernelInfo, case: Case, formats: dict[str, str], dtype: str = "float32") -> None:
    run_case(kernel, TRITON, case, formats=formats, dtype=dtype, device=accelerator())


def _same(op: str, name: str) -> dict[str, str]:
    return dict.fromkeys(("gate", "up") if op == "gate_up_swiglu" else ("weight",), name)


def _stored(name: str, shape: tuple[int, int], seed: int = 0) -> Tensor:
    return random_weight("w", shape, FORMATS[name], np.random.default_rng(seed))


def _packed(tensor: Tensor) -> torch.Tensor:
    return there(torch.from_numpy(pack(tensor) if tensor.format.quantized else tensor.numpy().copy()))


def test_no_two_forms_take_the_same_bytes() -> None:
    assert len(BYTES) == len(set(FORMS.values()))


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("shape", [(9, 768), (3, 256)])
def test_packed_weights_are_those_of_the_file(name: str, shape: tuple[int, int]) -> None:
    """Unpacked as a whole, and single elements in the order of columns."""
    tensor = _stored(name, shape)
    want = torch.from_numpy(tensor.dequantize())
    weight = _packed(tensor)
    torch.testing.assert_close(here(dequantized(weight, shape[1], torch.float32)), want, rtol=1e-6, atol=1e-7)
    some = there(torch.empty(2, shape[1] + 16))
    rows = torch.tensor([shape[0] - 1, 1])
    form = FORMS[name]
    _rows_kernel[(1,)](weight, there(rows), some, *shape, C=triton.next_power_of_2(shape[1] + 16), FORM=form)
    some = here(some)
    torch.testing.assert_close(some[:, : shape[1]], want[rows], rtol=1e-6, atol=1e-7)
    assert not some[:, shape[1] :].any()


@triton.jit
def _rows_kernel(weight, which, out, N, K, C: tl.constexpr, FORM: tl.constexpr):
    column = tl.arange(0, C)
    rows = tl.load(which + tl.arange(0, 2))
    values = packed_values(weight, tl.cast(N, tl.int64), rows, column, K, FORM)
    at = tl.arange(0, 2)[:, None] * (K + 16) + column[None, :]
    tl.store(out + at, values, mask=(column < K + 16)[None, :])


@pytest.mark.parametrize("op", ["linear", "linear_add", "gate_up_swiglu"])
@pytest.mark.parametrize("name", ["Q4_1", "Q8_0"])
@pytest.mark.parametrize("tokens", [FEW_PACKED, FEW_PACKED + 1])
def test_many_tokens_of_packed_weights(op: str, name: str, tokens: int) -> None:
    """On both sides of the number from which on weights are unpacked first."""
    kernel = next(kernel for kernel in KERNELS if kernel.op == op and name in kernel.formats)
    dims = {"M": tokens, "K": 64, "F" if op == "gate_up_swiglu" else "N": 37}
    _run(kernel, Case(dims, present=("bias",) if "linear" in op else ()), _same(op, name))


@pytest.mark.parametrize("name", ["F32", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_columns_are_split_where_rows_are_few(name: str, tokens: int) -> None:
    kernel = next(kernel for kernel in KERNELS if kernel.op == "linear_add" and name in kernel.formats)
    if name == "F32":
        kernel = next(k for k in KERNELS if k.op == "linear_add" and not k.pack and "float32" in k.dtypes)
    columns = 256 * (37 if tokens == 1 else 9)
    assert plan(torch.empty(tokens, columns), _packed(_stored(name, (3, columns))), 3).split > 1
    case = Case({"M": tokens, "K": columns, "N": 3}, present=("bias",))
    _run(kernel, case, {"weight": name})


@pytest.mark.parametrize(
    ("tokens", "columns", "formats", "biased"),
    [
        (1, 256, ("F32", "F32", "F32"), "qkv"),
        (1, 256, ("Q4_K", "Q4_K", "Q6_K"), "k"),
        (6, 256 * 9, ("Q4_0", "Q8_0", "Q4_0"), "qv"),
        (6, 256, ("Q4_K", "Q5_1", "Q6_K"), ""),
        (6, 256 * 9, ("F32", "F32", "F32"), "qkv"),
        (33, 256, ("F32", "Q8_0", "F32"), "v"),
    ],
)
def test_three_projections(tokens: int, columns: int, formats: tuple[str, ...], biased: str) -> None:
    rng = np.random.default_rng(3)
    sizes = 40, 24, 24
    if columns > 256:
        assert plan(torch.empty(tokens, columns), torch.empty(40, columns), sum(sizes)).split > 1
    tensors = [_stored(name, (n, columns), seed) for seed, (name, n) in enumerate(zip(formats, sizes, strict=True))]
    x = torch.from_numpy(rng.standard_normal((tokens, columns)).astype(np.float32))
    biases = [torch.from_numpy(rng.standard_normal(n).astype(np.float32)) * 9 for n in sizes]
    given = [there(bias) if letter in biased else None for letter, bias in zip("qkv", biases, strict=True)]
    got = [there(torch.full((tokens, n), torch.nan)) for n in sizes]
    project3(there(x), *map(_packed, tensors), *given, *got)
    for one, tensor, bias in zip(got, tensors, given, strict=True):
        want = x @ torch.from_numpy(tensor.dequantize()).T + (0 if bias is None else here(bias))
        torch.testing.assert_close(here(one), want, rtol=1e-4, atol=1e-4 * want.std().item())


def _choose(x: torch.Tensor, weight: torch.Tensor) -> list[int]:
    ids = there(torch.full((x.shape[0],), -7, dtype=torch.int32))
    classifier_argmax(there(x), there(weight), ids)
    return ids.tolist()


@pytest.mark.parametrize("tokens", [1, 3, 70])
def test_the_lowest_of_equal_logits_is_chosen(tokens: int) -> None:
    """In one tile, in several, and in the last; rows beyond the last are as good as the first, but no choice."""
    x, weight = torch.ones(tokens, 32), torch.zeros(203, 32)
    assert _choose(x, weight) == [0] * tokens
    weight[[37, 41, 150]] = 1
    assert _choose(x, weight) == [37] * tokens
    weight[202] = 2
    assert _choose(x, weight) == [202] * tokens
    assert _choose(x, weight - 9) == [202] * tokens  # all are negative


def test_the_lowest_of_equal_tiles_is_chosen() -> None:
    """Of more tiles than the second kernel looks at at once."""
    tiles, ids = 2 * REDUCE + 5, there(torch.empty(1, dtype=torch.int32))
    index = there(torch.arange(10, 10 + tiles, dtype=torch.int32))
    choose_kernel[(1,)](there(torch.ones(tiles)), index, ids, tiles, BLOCK=REDUCE)
    assert ids.tolist() == [10]


def test_a_token_with_nan_has_no_best() -> None:
    x, weight = torch.ones(3, 32), torch.zeros(99, 32)
    weight[5] = 3
    x[1, 7] = torch.nan
    assert _choose(x, weight) == [5, -1, 5]
    assert _choose(x[1:2], weight) == [-1]
    weight[64] = -torch.inf
    assert _choose(x[:1], weight) == [5]
    assert _choose(x[:1], torch.full((99, 32), -torch.inf)) == [0]
    weight[64, 1] = torch.inf  # inf - inf
    assert _choose(x[:1], weight) == [-1]


def test_logits_are_not_rounded_to_the_tokens_type() -> None:
    """Of any number of tokens: 2049 is no float16."""
    for tokens in (1, 4, 40):
        x, weight = torch.ones(tokens, 64, dtype=torch.float16), torch.full((5, 64), 32.0, dtype=torch.float16)
        weight[:, 0] = 33.0
        y = there(torch.empty(tokens, 5))
        linear(there(x), there(weight), None, y)
        assert (y == 2049).all()


@triton.jit
def _far_kernel(x, weight, y, first, N, K, BM: tl.constexpr):
    rows = first + tl.arange(0, 4)
    acc = product(x, weight, rows, tl.arange(0, BM), 1, N, K, 0, 0, BM, 4, 128, 1, True)
    tl.store(y + tl.arange(0, 4), tl.max(acc, 1))


@pytest.mark.parametrize("tokens", [1, 16])
def test_elements_beyond_two_to_the_31(tokens: int) -> None:
    """The matrix is memory that nobody touches, but for its last rows."""
    rows, columns = (1 << 31) // 32768 + 8, 32768
    weight = torch.empty(rows, columns, dtype=torch.float16, device=NAME)
    weight[-4:] = there(torch.tensor([1.0, 2.0, 3.0, 4.0]))[:, None]
    x, y = there(torch.ones(1, columns, dtype=torch.float16)), there(torch.empty(4))
    _far_kernel[(1,)](x, weight, y, rows - 4, rows, columns, BM=tokens)
    assert y.tolist() == [columns * i for i in (1, 2, 3, 4)]


@pytest.mark.parametrize("kernel", COARSE, ids=lambda kernel: kernel.target)
def test_eight_bits_conform(kernel: KernelInfo) -> None:
    """float8 has 3 bits of mantissa, so it is held to its own arithmetic below, and not to the kit's bound."""
    backend = BACKENDS["triton_w8a8" if "w8a8" in kernel.target else "triton_fp8"]
    assert not kernel.exact
    assert declaration_errors(kernel, backend) == []
    if backend.name == "triton_w8a8":
        found = list(checks(backend, kernel, accelerator()))
        for check in [check for check in found if check.case.dims["N"] < 1000][::11] if INTERPRETING else found:
            check.run()


@KINDS
@pytest.mark.parametrize(("tokens", "columns", "rows"), [(1, 100, 33), (5, 256, 70), (40, 64, 9), (3, 6000, 7)])
def test_eight_bits_are_what_they_say(kind, pack_rows, tokens: int, columns: int, rows: int) -> None:
    """Both operands rounded to 8 bits with a scale for each row, and nothing else."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    x[-1] *= 100
    tensor = _stored("F32", (rows, columns))
    bias = rng.standard_normal(rows).astype(np.float32)
    residual = rng.standard_normal((tokens, rows)).astype(np.float32)
    y = there(torch.full((tokens, rows), torch.nan))
    given = [there(torch.from_numpy(array)) for array in (x, residual, pack_rows(tensor), bias)]
    kind.linear_add(*given, y)
    y = here(y)
    want = residual + _eight_bits(x, kind) @ _eight_bits(tensor.dequantize(), kind).T + bias
    assert (np.abs(y.numpy() - want) <= 1e-2 * want.std()).all()  # halves may be rounded otherwise
    assert np.abs(y.numpy() - want).mean() <= 2e-4 * want.std()


def _eight_bits(values: np.ndarray, kind: object) -> np.ndarray:
    scale = np.abs(values).max(1, keepdims=True) / np.float32(127 if kind is w8a8 else 448)
    codes = values / scale
    return (np.rint(codes) if kind is w8a8 else codes.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)) * scale


@KINDS
def test_eight_bits_keep_zeros_and_nan(kind, pack_rows) -> None:
    x = torch.zeros(3, 32)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    y = there(torch.empty(3, 4))
    kind.linear(there(x), there(torch.from_numpy(pack_rows(_stored("F32", (4, 32))))), None, y)
    y = here(y)
    assert (y[0] == 0).all()
    assert y[1:].isnan().all()


@FLOAT8
def test_the_kit_notices_a_wrong_kind() -> None:
    """The bound of 8 bits is no licence: int8 rows read as float8 are beyond it."""
    kernel = COARSE[0]
    with pytest.raises(KernelMismatch):
        wrong, case = replace(kernel, target="llmcore_triton.fp8:linear"), Case({"M": 4, "K": 64, "N": 8})
        run_case(wrong, BACKENDS["triton_w8a8"], case, formats={"weight": "F32"}, device=accelerator())


def test_listing_the_plugin_imports_no_triton() -> None:
    code = "import sys, llmcore_triton.plugin as p; p.llmcore_backends(); print({'torch', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


COMPILE = """
import sys, torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
import llmcore_triton.device as device
NAME = sys.argv[1]

TARGET = GPUTarget("hip", NAME, 64) if "gfx" in NAME else GPUTarget("cuda", int(NAME[3:]), 32)

class Driver:
    get_current_target = lambda self: TARGET
    get_current_device = get_current_stream = lambda self, *_: 0
    get_active_torch_device = lambda self: torch.device("meta")

driver.set_active(Driver())
device.target = lambda: device.KNOWN[NAME]
run, found = JITFunction.run, []

def compile_only(self, *args, grid, warmup, **options):
    kernel = run(self, *args, grid=grid, warmup=True, **options)
    found.append((self.fn.__name__, kernel))
    return kernel

JITFunction.run = compile_only
from llmcore_triton.linear import linear
from llmcore_triton.w8a8 import linear as linear8

new = lambda *shape, kind=torch.bfloat16: torch.empty(shape, dtype=kind, device="meta")
for m in (1, 16):
    linear(new(m, 4096), new(4096, 4096 * 148 // 256, kind=torch.uint8), None, new(m, 4096))
    linear(new(m, 4096), new(4096, 4096), new(4096, kind=torch.float32), new(m, 4096))
linear8(new(1, 64), new(1, 68, kind=torch.uint8), None, new(1, 1))
linear(new(1, 1), new(1, 1), None, new(1, 1))
asm = {name: "".join(kernel.asm["amdgcn" if "gfx" in NAME else "ptx"] for n, kernel in found if n == name)
       for name, _ in found}
assert all(kernel.metadata.shared <= device.KNOWN[NAME].shared for _, kernel in found)
for word in sys.argv[2:]:
    assert word in asm["linear_kernel"], word
print(sorted(asm))
"""


@pytest.mark.parametrize(
    ("device", "words"),
    [("sm_90", ("wgmma.mma_async", ".v4.b32")), ("gfx942", ("v_mfma", "dwordx4"))],
)
def test_launchers_compile_without_data(device: str, words: tuple[str, ...]) -> None:
    """On tensors that hold nothing, to matrix instructions and loads of 16 bytes; for sizes of one too."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, device, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "['finish_kernel', 'linear_kernel', 'quantize_kernel', 'scaled_kernel']"

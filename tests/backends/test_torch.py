"""The torch backend conforms, whole; and what is its own: layouts, lazy import, threads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from llmcore import ops
from llmcore.hookspecs import KernelInfo
from llmcore.plugins import resolve
from llmcore.testing.conformance import checks, declaration_errors, run_case
from llmcore.testing.operands import random_weight
from llmcore.weights.formats import FORMATS
from llmcore_torch.layout import FLOAT32
from llmcore_torch.linear import dense
from llmcore_torch.plugin import llmcore_backends

BACKEND = llmcore_backends()[0]


@pytest.mark.parametrize("kernel", BACKEND.kernels, ids=lambda kernel: f"{kernel.op}{'-packed' if kernel.pack else ''}")
def test_conforms(kernel: KernelInfo) -> None:
    assert declaration_errors(kernel, BACKEND) == []
    for number, check in enumerate(checks(BACKEND, kernel)):
        assert not check.unsupported()
        if check.dtype == "float32" or not kernel.formats or number % 5 == 0:  # narrow types cast to float32 and back
            check.run()


def test_offers_every_op_that_is_not_fused() -> None:
    assert {kernel.op for kernel in BACKEND.kernels} == {name for name in ops.NAMES if not ops.get(name).fused}


def test_reads_every_format_that_ops_compute_with() -> None:
    computable = {name for name, form in FORMATS.items() if form.decode is not None}
    for op in ("linear", "embedding"):
        offered = [name for kernel in BACKEND.kernels if kernel.op == op for name in kernel.formats]
        assert sorted(offered) == sorted(computable)


def test_tied_tables_are_unpacked_once() -> None:
    """Embedding and classifier name the same layout for the formats that both unpack."""
    packed = {kernel.op: kernel for kernel in BACKEND.kernels if kernel.pack}
    assert packed["linear"].layout == packed["embedding"].layout
    assert packed["linear"].pack == packed["embedding"].pack


def test_dense_layout_is_the_weight_in_float32() -> None:
    weight = random_weight("w", (3, 256), FORMATS["Q4_K"], np.random.default_rng(0))
    packed = dense(weight)
    assert packed.dtype == np.float32
    np.testing.assert_array_equal(packed, weight.dequantize())


def test_float32_weights_are_used_where_they_are() -> None:
    """Of half-precision tables only the rows asked for are converted: neither kernel packs."""
    unpacked = {(kernel.op, name) for kernel in BACKEND.kernels if not kernel.pack for name in kernel.formats}
    assert {("linear", "F32"), ("embedding", "F32"), ("embedding", "F16"), ("embedding", "BF16")} == unpacked


def test_pages_are_those_of_the_reference() -> None:
    assert FLOAT32.page_shape(3, 64, 16) == (2, 16, 3, 64)
    kv = torch.zeros(5, *FLOAT32.page_shape(2, 4, 8))
    k, v = torch.randn(2, 3, 8)
    slots = torch.tensor([9, 0, 33], dtype=torch.int32)
    mine = kv.clone()
    resolve("llmcore_torch.attention:kv_write")(k, v, slots, mine, head_dim=4, page_size=8)
    ops.get("kv_write").reference(k, v, slots, kv, head_dim=4, page_size=8)
    assert torch.equal(mine, kv)


def test_listing_the_plugin_imports_no_torch() -> None:
    code = "import sys, llmcore_torch.plugin as p; p.llmcore_backends(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_threads_are_torchs() -> None:
    before = torch.get_num_threads()
    try:
        resolve(BACKEND.prepare)(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_long_prefill_is_attention_too() -> None:
    """Longer than any conformance case: over many pages, as one chunk and with a past."""
    kernel = next(kernel for kernel in BACKEND.kernels if kernel.op == "attention")
    from llmcore.ops import Case
    from llmcore.ops.cases import Ragged

    batch = Ragged((700, 300), (700, 1100), 16)
    dims = {"T": 1000, "D": 4 * 32, "S": 2, "B": batch.table_width}
    attrs = {"head_dim": 32, "kv_heads": 2, "page_size": 16, "scale": 32**-0.5}
    run_case(kernel, BACKEND, Case(dims, attrs, inputs=batch))

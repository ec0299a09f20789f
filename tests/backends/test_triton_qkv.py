"""The Triton backend's fused op before attention conforms, on a choice of the kit's cases (all of them: the kit)."""

from __future__ import annotations

import pytest

from helpers.accelerator import accelerator
from llmcore.testing.conformance import Check, checks, declaration_errors
from llmcore_triton.device import INTERPRETING
from llmcore_triton.plugin import llmcore_backends

pytest.importorskip("triton")
BACKEND = llmcore_backends()[0]
KERNELS = [kernel for kernel in BACKEND.kernels if kernel.op == "qkv_rope_kv_write"]
STRIDE = 29 if INTERPRETING else 1  # a GPU takes all


def chosen() -> list[Check]:
    """Every kernel on some cases, other ones of each."""
    device = accelerator()
    found = [list(checks(BACKEND, kernel, device)) for kernel in KERNELS]
    return [check for i, each in enumerate(found) for check in each[i % len(each) :: STRIDE]]


def test_declarations() -> None:
    assert len(KERNELS) == 6
    for kernel in KERNELS:
        assert declaration_errors(kernel, BACKEND) == []


@pytest.mark.parametrize("check", chosen(), ids=lambda check: check.id)
def test_conforms(check: Check) -> None:
    if check.unsupported():
        assert "only whole heads" in check.unsupported()
        return
    check.run()

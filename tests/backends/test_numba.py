"""Every kernel of the Numba backend on every case of its op, its bits independent of the batch and the threads."""

from __future__ import annotations

import pytest

from llmcore.hookspecs import KernelInfo
from llmcore.native.machine import machine as processor
from llmcore.testing.conformance import checks, declaration_errors
from llmcore.testing.invoke import Machine
from llmcore_numba.plugin import llmcore_backends

BACKEND = llmcore_backends()[0]
COMMON = {"F32", "Q8_0", "Q4_1"}  # formats that every op is tested with; ``linear`` is with all


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine()


def _parameter(kernel: KernelInfo):
    rare = kernel.op != "linear" and kernel.formats and not COMMON & set(kernel.formats)
    marks = [pytest.mark.slow] if rare else []  # a second or two to compile, each
    return pytest.param(kernel, marks=marks, id=kernel.target.split(":")[1])


@pytest.mark.parametrize("kernel", [_parameter(kernel) for kernel in BACKEND.kernels])
def test_kernel(kernel: KernelInfo, machine: Machine) -> None:
    if "multiplies_pairs" in kernel.supported and not processor().has("avx512bf16"):
        pytest.skip("this processor multiplies no pairs of bfloat16")
    assert not declaration_errors(kernel, BACKEND)
    for check in checks(BACKEND, kernel):
        if not check.unsupported():
            check.run(machine, batch_invariance=True)

"""Every kernel of the Numba backend on every case of its op, its bits independent of the batch and the threads."""

from __future__ import annotations

import pytest

from llmcore.testing.conformance import checks, declaration_errors
from llmcore.testing.invoke import Machine
from llmcore_numba.plugin import llmcore_backends

BACKEND = llmcore_backends()[0]


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine()


@pytest.mark.parametrize("kernel", BACKEND.kernels, ids=lambda kernel: kernel.target.split(":")[1])
def test_kernel(kernel, machine: Machine) -> None:
    assert not declaration_errors(kernel, BACKEND)
    for check in checks(BACKEND, kernel):
        if not check.unsupported():
            check.run(machine, batch_invariance=True)

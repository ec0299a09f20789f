"""The kit's tests: one for each kernel's declaration, and one for each kernel and case."""

from __future__ import annotations

import pytest

from llmcore.hookspecs import BackendInfo, KernelInfo
from llmcore.testing.buffers import KernelMismatch, KernelRaised
from llmcore.testing.conformance import Check, checks, declaration_errors
from llmcore.testing.fuzz import RandomCalls
from llmcore.testing.invoke import Machine
from llmcore.testing.pytest_plugin import device_named, selected


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each kernel's declaration, one for each check, and one for each backend."""
    found = selected(metafunc.config)
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", metafunc.config.option.backend)
        return
    if "check" in metafunc.fixturenames:
        device = device_named(metafunc.config.option.device)
        every = [check for backend, kernel in found for check in checks(backend, kernel, device)]
        metafunc.parametrize("check", every, ids=[check.id for check in every])
    else:
        ids = [f"{kernel.op} {kernel.target}" for _, kernel in found]
        metafunc.parametrize(("backend", "kernel"), found, ids=ids)


@pytest.fixture(scope="session")
def machine() -> Machine:
    """Worker pools for all checks."""
    return Machine()


def test_declaration(backend: BackendInfo, kernel: KernelInfo) -> None:
    """The record is consistent, what it names can be imported, and some case of the op is one that it takes."""
    errors = declaration_errors(kernel, backend)
    if errors:
        pytest.fail(f"{kernel.op} ({kernel.target}): {'; '.join(errors)}", pytrace=False)


def test_kernel(check: Check, machine: Machine, pytestconfig: pytest.Config) -> None:
    """The kernel does what its op says, in this case."""
    reason = check.unsupported()
    if reason:
        pytest.skip(reason)
    failure = ""
    try:
        check.run(machine, batch_invariance=pytestconfig.getoption("--batch-invariance"))
    except KernelRaised:
        raise  # with the kernel's own traceback
    except KernelMismatch as error:
        failure = str(error)
    if failure:
        pytest.fail(failure, pytrace=False)


def test_random_calls(name: str, pytestconfig: pytest.Config) -> None:
    """Calls of random sizes read and write nothing but their buffers."""
    count, ops = pytestconfig.getoption("--random-calls"), tuple(pytestconfig.getoption("--op"))
    failure = ""
    try:
        RandomCalls(name, count, ops=ops).check()
    except KernelMismatch as error:
        failure = str(error)
    if failure:
        pytest.fail(failure, pytrace=False)

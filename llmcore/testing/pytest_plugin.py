"""The options of ``pytest --pyargs llmcore.testing``.

pytest loads this in every session of an environment that has llmcore, so it imports nothing, and adds its options only
where the kit is what is to be run: another plugin may have a ``--backend`` of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from llmcore.device import Device
    from llmcore.hookspecs import BackendInfo, KernelInfo

KIT = "llmcore.testing"


def pytest_load_initial_conftests(parser: pytest.Parser, args: list[str]) -> None:
    """Adds the kit's options, in time for the command line to be read."""
    if not any(argument.partition("::")[0].startswith(KIT) for argument in args):
        return
    group = parser.getgroup("llmcore", "llmcore's conformance kit")
    group.addoption("--backend", action="append", default=[], help="check this backend's kernels (repeatable)")
    group.addoption("--device", default="cpu", help="where operands lie: cpu, cuda, cuda:1")
    group.addoption("--op", action="append", default=[], help="only the kernels of this op (repeatable)")
    group.addoption(
        "--batch-invariance", action="store_true", help="also: a row's bits must not depend on the other rows"
    )
    group.addoption(
        "--random-calls", type=int, default=0, help="also: so many random calls of native kernels, see testing/fuzz.py"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuses names that do not exist before anything is collected."""
    if hasattr(config.option, "batch_invariance"):
        selected(config)
        device_named(config.option.device)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves random calls out where nobody asks for any."""
    if getattr(config.option, "random_calls", None) == 0:
        items[:] = [item for item in items if getattr(item, "originalname", "") != "test_random_calls"]


def device_named(name: str) -> Device:
    """Where operands are to lie; raises ``pytest.UsageError`` for a device that torch does not see."""
    import pytest

    from llmcore.device import HOST

    if name == "cpu":
        return HOST
    from llmcore.device.accelerator import Accelerator

    try:
        return Accelerator(name)
    except (RuntimeError, AssertionError) as error:
        raise pytest.UsageError(f"--device {name}: {error}") from error


def selected(config: pytest.Config) -> list[tuple[BackendInfo, KernelInfo]]:
    """The kernels that the command line asks for; raises ``pytest.UsageError`` where it names something unknown."""
    import pytest

    from llmcore.errors import LlmcoreError
    from llmcore.plugins import plugins
    from llmcore.testing.conformance import kernels

    if not config.option.backend:
        raise pytest.UsageError(f"name a backend: --backend {' | '.join(plugins().backends)}")
    try:
        backends = [plugins().backend(name) for name in config.option.backend]
        return [(backend, kernel) for backend in backends for kernel in kernels(backend, config.option.op)]
    except LlmcoreError as error:
        raise pytest.UsageError(str(error)) from error

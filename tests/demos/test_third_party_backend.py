"""The example backend, installed from its wheel into an environment of its own, and what goes wrong with others."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.environments import Environment, build_wheel
from llmcore.hookspecs import BackendInfo
from llmcore.testing.conformance import checks, declaration_errors
from llmcore.testing.invoke import Machine

PROJECT = Path(__file__).parents[2] / "demos" / "third_party_backend"
PACKAGE = "llmcore_example_backend"
KIT = ("-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "llmcore.testing", "--backend", "example")

LLMCORE = ("-m", "llmcore.cli.main")

BROKEN = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "llmcore-broken"
version = "2.1"
[project.entry-points.llmcore]
broken = "llmcore_broken"
[tool.setuptools]
py-modules = ["llmcore_broken"]
""",
    "llmcore_broken.py": "import a_package_that_nobody_has\n",
}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> BackendInfo:
    """The backend straight from the source tree."""
    monkeypatch.syspath_prepend(PROJECT)
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        monkeypatch.delitem(sys.modules, name)
    from llmcore_example_backend.plugin import llmcore_backends

    (backend,) = llmcore_backends()
    return backend


def test_its_kernels_conform(example: BackendInfo) -> None:
    machine = Machine()
    for kernel in example.kernels:
        assert declaration_errors(kernel, example) == []
        for check in checks(example, kernel):
            assert not check.unsupported()
            check.run(machine, batch_invariance=True)


def test_it_offers_a_callable_and_a_native_kernel(example: BackendInfo) -> None:
    assert {kernel.op: kernel.abi for kernel in example.kernels} == {"rms_norm": "call", "swiglu": "native"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheels")


def project(folder: Path, **changes: tuple[str, str]) -> Path:
    """A copy of the example in ``folder``, with one text of a module replaced by another."""
    copy = shutil.copytree(PROJECT, folder / "project", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    for module, (text, replacement) in changes.items():
        file = copy / PACKAGE / f"{module}.py"
        source = file.read_text()
        assert source.count(text) == 1
        file.write_text(source.replace(text, replacement))
    return copy


@pytest.fixture(scope="module")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the example."""
    folder = tmp_path_factory.mktemp("example")
    environment = Environment(folder / "venv")
    environment.install(build_wheel(project(folder), wheels))
    return environment


@pytest.mark.slow
def test_installed_from_its_wheel_it_is_listed_and_conforms(installed: Environment) -> None:
    listed = installed.run(*LLMCORE, "plugins", "--json")
    (entry,) = [each for each in json.loads(listed.stdout)["plugins"] if each["name"] == "example"]
    assert entry["distribution"] == "llmcore-example-backend"
    assert entry["offers"] == {"backend": ["example"]}
    done = installed.run(*KIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout


def answer(environment: Environment, model: Path, *overrides: str) -> dict[str, Any]:
    """What ``llama_infer --json`` says of the capital of France."""
    question = ("--json", "--prompt", "What is the capital of France?")
    settings = (f"model={model}", "max_new_tokens=8", "engine.max_context=256", "weights.check_finite=false")
    done = environment.run("-m", "llmcore_demos.llama_infer", *settings, *overrides, *question)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_a_real_model_runs_on_its_two_kernels(installed: Environment, smollm2_path: Path) -> None:
    asked = answer(installed, smollm2_path, "backend=example", "compute=exact")
    assert "Paris" in asked["text"]
    assert asked["token_ids"] == answer(installed, smollm2_path, "backend=numba", "compute=exact")["token_ids"]
    done = installed.run(*LLMCORE, "explain", f"model={smollm2_path}", "backend=example", "--json")
    nodes = json.loads(done.stdout)["nodes"]
    assert {node["op"] for node in nodes if node["backend"] == "example"} == {"rms_norm", "swiglu"}
    assert {node["backend"] for node in nodes if node["op"] in ("rms_norm", "swiglu")} == {"example"}


@pytest.mark.slow
def test_one_of_its_kernels_in_another_backends_model(installed: Environment, smollm2_path: Path) -> None:
    asked = answer(installed, smollm2_path, "backend=numba", "backend.ops.rms_norm=example", "compute=exact")
    assert "Paris" in asked["text"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rms_norm": (" + eps)", " + 1e-5)")}, r"rms_norm \(.*output y: beyond the tolerance"),
        ({"swiglu": ("math.exp(-gate[i])", "math.exp(gate[i])")}, r"swiglu \(.*output y: beyond the tolerance"),
        (
            {"swiglu": ("CHUNK, size)", "CHUNK, size + 1)")},
            "y: 4 bytes outside it were overwritten, first 0 bytes past",
        ),
        ({"swiglu": ("range(5)", "(1, 0, 2, 3, 4)")}, r"swiglu \(.*output y: beyond the tolerance"),
    ],
    ids=["eps", "sign", "out of bounds", "operands in another order"],
)
def test_wrong_copy_is_caught(changes: dict[str, tuple[str, str]], says: str, wheels: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    (tmp_path / "wheels").mkdir()
    environment.install(build_wheel(project(tmp_path, **changes), tmp_path / "wheels"))
    done = environment.run(*KIT)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert re.search(says, done.stdout), done.stdout


@pytest.mark.slow
def test_broken_neighbour_costs_one_warning(installed: Environment, wheels: Path, tmp_path: Path) -> None:
    for name, text in BROKEN.items():
        (tmp_path / name).write_text(text)
    environment = Environment(tmp_path / "venv")
    environment.install(next(wheels.glob("llmcore_example*.whl")), build_wheel(tmp_path, wheels))
    done = environment.run(*LLMCORE, "plugins", "--json")
    assert done.stderr.count("plugin 'broken' of llmcore-broken 2.1 is ignored: ModuleNotFoundError") == 1
    assert done.stderr.count("llmcore-broken") == 1
    errors = {entry["name"]: entry["error"] for entry in json.loads(done.stdout)["plugins"]}
    assert {name for name, error in errors.items() if error} == {"broken"}
    assert {"example", "numba", "torch"} <= set(errors)
    kit = environment.run(*KIT, "--op", "rms_norm")
    assert kit.returncode == 0, kit.stdout + kit.stderr
    asked = environment.run("-m", "llmcore_demos.llama_infer", "backend.ops.rms_norm=broken", "--prompt", "Hello")
    assert asked.returncode != 0
    assert "repair or uninstall llmcore-broken" in asked.stderr

"""The kit from the command line, in a folder that knows nothing of this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.environments import Environment, build_llmcore


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_kernels_of_an_op_are_checked(tmp_path: Path) -> None:
    done = run(tmp_path, "--pyargs", "llmcore.testing", "--backend", "torch", "--op", "add", "--op", "gather", "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_declaration[add llmcore_torch.elementwise:add] PASSED" in done.stdout
    assert "test_kernel[add.call M33,D256] PASSED" in done.stdout
    assert "test_kernel[gather.call T5,D64,R0] PASSED" in done.stdout
    assert "rope" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "name a backend: --backend "),
        (("--backend", "trch"), "there is no backend 'trch'\n  → did you mean 'torch'?"),
        (("--backend", "torch", "--device", "cuda:99"), "--device cuda:99: "),
        (("--backend", "torch", "--op", "rmsnorm"), "there is no op 'rmsnorm'\n  → did you mean 'rms_norm'"),
    ],
)
def test_wrong_names_are_refused_at_once(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = run(tmp_path, "--pyargs", "llmcore.testing", *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {says}" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_sessions_do_not_get_the_options(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    assert run(tmp_path).returncode == 0
    refused = run(tmp_path, "--backend", "torch")
    assert refused.returncode == pytest.ExitCode.USAGE_ERROR
    assert "unrecognized arguments: --backend" in refused.stderr


@pytest.mark.slow
def test_the_kit_comes_with_the_wheel(tmp_path: Path) -> None:
    """Installed, not from the checkout: its test file, its options, and kernels of either ABI."""
    environment = Environment(tmp_path / "venv")
    environment.install(build_llmcore(Path(__file__).parents[2], tmp_path))
    where = environment.run("-c", "import llmcore.testing; print(llmcore.testing.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(tmp_path)
    names = ("--backend", "torch", "--backend", "numba", "--op", "add")
    done = environment.run("-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "llmcore.testing", *names, "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_kernel[add.call M33,D256] PASSED" in done.stdout
    assert "test_kernel[add.native M33,D256] PASSED" in done.stdout

"""Throw-away environments: wheels of small packages, installed beside everything that this Python has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

ROOTS = ("llmcore", "backends", "plugins", "conf", "tools", "demos")  # what the distribution is made of


def run(*command: str | Path, cwd: Path, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, with its output as text; the caller looks at the exit status."""
    merged = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"} | dict(environ or {})
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=merged)


def checked(*command: str | Path, cwd: Path) -> str:
    """Like :func:`run`, for a command that must succeed; returns what it printed."""
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(project: Path, folder: Path) -> Path:
    """Builds ``project``, which must not be in the repository (a build leaves files), without any download."""
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder)
    before = set(folder.glob("*.whl"))
    checked(*pip, project.resolve(), cwd=folder)
    (wheel,) = set(folder.glob("*.whl")) - before
    return wheel


def build_llmcore(repository: Path, folder: Path) -> Path:
    """Builds llmcore's own wheel, from a copy in ``folder``."""
    copy = folder / "llmcore"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, copy)
    for name in ROOTS:
        shutil.copytree(repository / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return build_wheel(copy, folder)


class Environment:
    """A virtual environment that also has the packages of the Python that runs the tests, editable ones included."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        checked(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        self.python = folder / "bin" / "python"
        mine = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
        lines = [f"import site; site.addsitedir({path!r})\n" for path in dict.fromkeys(mine)]
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "packages_of_the_tests.pth").write_text("".join(lines))

    def install(self, *wheels: Path) -> None:
        """Installs ``wheels`` and nothing else."""
        pip = (sys.executable, "-m", "pip", "--python", self.python, "install", "-q", "--no-deps")
        checked(*pip, *wheels, cwd=self.folder)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the environment's Python in an empty folder."""
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        return run(self.python, *arguments, cwd=empty)

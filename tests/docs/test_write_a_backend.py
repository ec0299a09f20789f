"""docs/write-a-backend.md shows the files of the example as they are, and its other code does what it says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.environments import Environment, build_llmcore, run
from llmcore import ops
from llmcore.hookspecs import BackendInfo, KernelInfo
from llmcore.native import SCRATCH_BYTES
from llmcore.testing.conformance import checks, declaration_errors

REPOSITORY = Path(__file__).parents[2]
PROJECT = REPOSITORY / "demos" / "third_party_backend"
PAGE = (REPOSITORY / "docs" / "write-a-backend.md").read_text()
FILE = re.compile(r"^`(?P<name>[\w./-]+)`:\n\n```\w+\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = {match["name"]: match["text"] for match in FILE.finditer(PAGE)}
COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SET_UP = ("python3 -m venv", ". .venv/bin", 'pip install "$LLMCORE')  # needs downloads: done below in another way
BEYOND = {f"llmcore_example_backend/{name}" for name in ("linear.py", "library.py", "kernels.c")}  # only on the page


def test_every_file_of_the_example_is_shown_as_it_is() -> None:
    suffixes = (".py", ".toml", ".yaml")
    found = {path.relative_to(PROJECT).as_posix(): path for path in PROJECT.rglob("*") if path.suffix in suffixes}
    expected = {name: path.read_text() for name, path in found.items() if not name.startswith("build/")}
    assert {name: text for name, text in SHOWN.items() if name not in BEYOND} == expected


def test_signatures_are_those_of_the_ops() -> None:
    for op in ("rms_norm", "swiglu"):
        assert ops.get(op).signature() in PAGE


def test_sizes_are_those_of_the_abi() -> None:
    assert SCRATCH_BYTES == 1 << 20
    assert "`SCRATCH_BYTES` (1 MiB) for each thread" in PAGE


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (REPOSITORY / "docs" / target).exists(), target


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that are only on the page, as a package of that name."""
    folder = tmp_path / "llmcore_example_backend"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for name in BEYOND:
        (tmp_path / name).write_text(SHOWN[name])
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def conform(kernel: KernelInfo) -> None:
    backend = BackendInfo("page", "", (kernel,))
    assert declaration_errors(kernel, backend) == []
    for check in checks(backend, kernel):
        check.run()


@pytest.mark.usefixtures("package")
def test_packed_weights() -> None:
    (declared,) = re.findall(r"^KernelInfo\((.*?)^\)$", PAGE, re.MULTILINE | re.DOTALL)
    name = "llmcore_example_backend.linear"
    kernel = KernelInfo(
        "linear",
        f"{name}:linear",
        formats=("F32", "BF16", "Q4_1", "Q8_0"),
        pack=f"{name}:transposed",
        layout=("example-transposed", 1),
    )
    for value in (kernel.target, kernel.pack, *kernel.formats, kernel.layout[0]):
        assert f'"{value}"' in declared
    conform(kernel)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_kernel_from_a_c_library(package: Path) -> None:
    (command,) = re.findall(r"`(cc [^`]+)`", PAGE)
    subprocess.run(command.split(), cwd=package, check=True)
    conform(KernelInfo("add", "llmcore_example_backend.library:add", abi="native"))


@pytest.mark.slow
def test_commands_lead_from_an_empty_folder_to_an_answer(tmp_path: Path, smollm2_path: Path) -> None:
    """All of the page's commands, in order, with its files written between them."""
    environment = Environment(tmp_path / "venv")
    environment.install(build_llmcore(REPOSITORY, tmp_path))
    make, *rest = (
        line for block in COMMANDS.findall(PAGE) for line in block.splitlines() if not line.startswith(SET_UP)
    )
    work = tmp_path / "work"
    work.mkdir()
    subprocess.run(["bash", "-c", make], cwd=work, check=True)
    for name in SHOWN.keys() - BEYOND:
        (work / "llmcore-example-backend" / name).write_text(SHOWN[name])
    lines = [
        "set -eu",
        f'pip() {{ "{sys.executable}" -m pip --python "{environment.python}" "$@"; }}',
        f'pytest() {{ "{environment.python}" -m pytest "$@"; }}',
        f'export PATH="{environment.python.parent}:$PATH"',
        *rest,
    ]
    done = run("bash", "-c", "\n".join(lines), cwd=work)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "backend example" in done.stdout  # llmcore plugins
    assert "Paris" in done.stdout  # llama_infer
    assert "llmcore_example_backend.swiglu:swiglu" in done.stdout  # llmcore explain

"""Weights are packed by several threads, and once: the next start maps what was kept, if nothing has changed."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcore.errors import CheckpointError
from llmcore.graph import packing
from llmcore.graph.packing import PackedCache, Repack, pack_all, source_digest
from llmcore.graph.weight_store import WeightStore
from llmcore.hookspecs import KernelInfo
from llmcore.weights import packed_file
from llmcore.weights.cachedir import CacheWarning
from llmcore.weights.formats import FORMATS
from llmcore.weights.ledger import Ledger
from llmcore.weights.mapping import MappedFile
from llmcore.weights.tensor import Tensor

PACKER = """
from made_up_arithmetic import twice
made = []
def doubled(tensor):
    made.append(tensor.name)
    return twice(tensor.dequantize())
"""
ARITHMETIC = "def twice(array):\n    return 2 * array\n"
NAMES = ("a", "b", "c")


@pytest.fixture
def packer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with a packer that counts what it makes, beside one that it imports."""
    package = tmp_path / "made_up"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "packer.py").write_text(PACKER.replace("made_up_arithmetic", "made_up.arithmetic"))
    (package / "arithmetic.py").write_text(ARITHMETIC)
    monkeypatch.syspath_prepend(tmp_path)
    source_digest.cache_clear()
    yield importlib.import_module("made_up.packer")
    for name in [name for name in sys.modules if name.partition(".")[0] == "made_up"]:
        del sys.modules[name]
    source_digest.cache_clear()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """``a`` and ``b`` [2, 3] in one shard, ``c`` [2, 3] in another."""
    return [shard(tmp_path / "1", 2), shard(tmp_path / "2", 1)]


def shard(path: Path, count: int, first: float = 0.0) -> Path:
    values = np.arange(6 * count, dtype=np.float32)
    values[0] = first
    path.touch()
    with path.open("r+b") as file:  # in place: to cut off a file that is mapped kills the reader
        file.write(values.tobytes())
    return path


@pytest.fixture
def store(tmp_path: Path, files: list[Path], packer: Any) -> Callable[..., WeightStore]:
    """``store()``: as a new process opens the checkpoint, with a cache of its own folder."""

    def opened(folder: Path = tmp_path / "cache") -> WeightStore:
        folder.mkdir(exist_ok=True)
        one, two = map(MappedFile, files)
        places = {"a": (one, 0), "b": (one, 24), "c": (two, 0)}
        tensors = {name: Tensor(name, (2, 3), FORMATS["F32"], *place) for name, place in places.items()}
        return WeightStore(tensors, cache=PackedCache(Ledger(folder, least=0)), threads=2)

    return opened


def kernel(version: int = 1, keep: bool = True) -> KernelInfo:
    return KernelInfo("linear", "x:y", pack="made_up.packer:doubled", layout=("doubled", version), keep=keep)


def load(store: WeightStore, which: KernelInfo | None = None) -> list[np.ndarray[Any, Any]]:
    which = which or kernel()
    store.prepare((name, which) for name in (*NAMES, "a"))  # "a" is tied: two nodes read it
    return [store.operand(name, which) for name in NAMES]


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*.safetensors"))


def test_the_second_start_maps(tmp_path: Path, store: Callable[..., WeightStore], packer: Any) -> None:
    first, again = store(), store()
    for each in (first, again):
        arrays = load(each)
        assert [array.tolist() for array in arrays] == [(2 * each.tensors[n].numpy()).tolist() for n in NAMES]
        assert not any(array.flags.writeable for array in arrays)  # mapped, on the first start too
        assert each.repacked_bytes == 72
    assert packer.made == ["a", "b", "c"] and len(kept(tmp_path)) == 1


def test_a_second_program_of_one_process_packs_what_is_new(store: Callable[..., WeightStore], packer: Any) -> None:
    one = store()
    one.prepare([("a", kernel())])
    load(one)
    assert sorted(packer.made) == ["a", "b", "c"]


@pytest.mark.parametrize("which", [0, 1])
def test_a_changed_shard_is_packed_anew(
    which: int, store: Callable[..., WeightStore], files: list[Path], packer: Any
) -> None:
    load(store())
    when = files[which].stat().st_mtime_ns
    shard(files[which], 2 - which, first=5.0)
    os.utime(files[which], ns=(when + 10**9, when + 10**9))
    arrays = load(store())
    assert arrays[2 * which][0, 0] == 10 and len(packer.made) == 6


def test_another_version_of_the_layout_is_packed_anew(store: Callable[..., WeightStore], packer: Any) -> None:
    load(store())
    load(store(), kernel(version=2))
    assert len(packer.made) == 6


@pytest.mark.parametrize("module", ["packer", "arithmetic"])
def test_a_changed_packer_packs_anew(
    module: str, tmp_path: Path, store: Callable[..., WeightStore], packer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it made before goes, unless somebody has used it lately."""
    load(store())
    with (tmp_path / "made_up" / f"{module}.py").open("a") as source:
        source.write("# changed\n")
    source_digest.cache_clear()
    load(store())
    assert len(packer.made) == 6 and len(kept(tmp_path)) == 2
    long_ago = time.time() - packing.SUPERSEDED_S - 60
    for old in kept(tmp_path):
        os.utime(old, (long_ago, long_ago))
    source_digest.cache_clear()
    with (tmp_path / "made_up" / f"{module}.py").open("a") as source:
        source.write("# again\n")
    load(store())
    assert len(kept(tmp_path)) == 1


def test_a_damaged_file_is_made_anew(tmp_path: Path, store: Callable[..., WeightStore], packer: Any) -> None:
    load(store())
    (file,) = kept(tmp_path)
    file.write_bytes(file.read_bytes()[:-5])
    assert load(store())[2].tolist() == [[0, 2, 4], [6, 8, 10]]
    load(store())
    assert len(packer.made) == 6


def test_old_files_are_removed(tmp_path: Path, store: Callable[..., WeightStore]) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    long_ago = time.time() - packing.UNUSED_S - 60
    for name in ("x-y.safetensors", "x.json", ".x.part", "new.json"):
        (folder / name).touch()
        if name != "new.json":
            os.utime(folder / name, (long_ago, long_ago))
    load(store())
    (file,) = kept(tmp_path)
    assert {path.name for path in folder.iterdir()} == {file.name, "new.json"}


def test_a_full_disk_is_one_warning(
    tmp_path: Path, store: Callable[..., WeightStore], packer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_file, "RESERVE", 1 << 62)
    one = store()
    with pytest.warns(CacheWarning, match="are free"):
        assert load(one)[0].tolist() == [[0, 2, 4], [6, 8, 10]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(one, kernel(version=2))
    assert kept(tmp_path) == []


def test_nothing_is_kept_that_is_not_worth_it(tmp_path: Path, store: Callable[..., WeightStore]) -> None:
    load(store(), kernel(keep=False))
    small, off = store(), store()
    assert small.cache is not None
    small.cache.ledger.least = 1000
    off.cache = None
    for each in (small, off):
        assert load(each)[2].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_changes_meanwhile(store: Callable[..., WeightStore], files: list[Path]) -> None:
    opened = [Repack(tensor, "made_up.packer:doubled", ("doubled", 1)) for tensor in store().tensors.values()]
    arrays = pack_all(opened, 1)
    next(arrays)
    shard(files[0], 2, first=3.0)
    with pytest.raises(CheckpointError, match="changed while it was being loaded"):
        list(arrays)


PROCESS = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:2]
from llmcore.graph.packing import PackedCache
from llmcore.graph.weight_store import WeightStore
from llmcore.hookspecs import KernelInfo
from llmcore.weights.formats import FORMATS
from llmcore.weights.ledger import Ledger
from llmcore.weights.mapping import MappedFile
from llmcore.weights.tensor import Tensor
folder = Path(sys.argv[1])
kernel = KernelInfo("linear", "x:y", pack="made_up.packer:doubled", layout=("doubled", 1))
sys.stdin.readline()
for i in range(20):
    tensor = Tensor("a", (2, 3), FORMATS["F32"], MappedFile(folder / "1"), 0)
    store = WeightStore({"a": tensor}, cache=PackedCache(Ledger(folder / "cache", least=0)))
    store.prepare([("a", kernel)])
    assert store.operand("a", kernel).tolist() == [[0, 2, 4], [6, 8, 10]]
    for file in (folder / "cache").glob("*.safetensors"):
        file.unlink(missing_ok=True)
"""


def test_several_processes_at_once(tmp_path: Path, store: Callable[..., WeightStore]) -> None:
    """Each packs, maps and removes what the others do too."""
    (tmp_path / "cache").mkdir()
    command = [sys.executable, "-W", "error", "-c", PROCESS, str(tmp_path)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in running:
        assert process.communicate()[1] == "" and process.returncode == 0
    assert not list((tmp_path / "cache").glob(".*"))


@pytest.mark.parametrize(
    "statement",
    [
        *("import made_up.other", "from made_up import other", "from made_up import (\n    one,\n    other,\n)"),
        *("from .other import x", "from . import other", "def f():\n    from made_up.other import x"),
    ],
)
def test_what_a_packer_imports_belongs_to_its_source(statement: str, tmp_path: Path, packer: Any) -> None:
    package = tmp_path / "made_up"
    (package / "importer.py").write_text(f"from typing import Any\nimport json\n{statement}\nimport os\n")
    digests = []
    for text in ("x = 1", "x = 2", "x = 1"):
        (package / "other.py").write_text(text)
        importlib.invalidate_caches()
        source_digest.cache_clear()
        digests.append(source_digest("made_up.importer"))
    assert None not in digests and digests[0] == digests[2] != digests[1]


def test_the_arithmetic_of_formats_belongs_to_a_packer() -> None:
    assert source_digest("llmcore.no_such_module") is None
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        find = packing._file_of
        patch.setattr(packing, "_file_of", lambda name: seen.append(name) or find(name))
        source_digest.cache_clear()
        assert source_digest("llmcore_numba.packed")
    assert {"llmcore_numba.packing", "llmcore.weights.quants", "llmcore.weights.k_quants"} <= set(seen)
    assert "llmcore.llm" not in seen

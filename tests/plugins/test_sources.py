"""Paths, the choice between sources, and how they are registered."""

from __future__ import annotations

import hashlib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from llmcore import plugins
from llmcore.errors import DownloadError, ModelReferenceError
from llmcore.plugins import Plugins
from llmcore.weights import sources
from llmcore.weights.cachedir import FetchOptions
from llmcore_sources import hub, local, pypi
from llmcore_sources.plugin import llmcore_sources


@pytest.fixture
def only_sources(monkeypatch: pytest.MonkeyPatch) -> Plugins:
    found = Plugins(sources={source.name: source for source in llmcore_sources()})
    monkeypatch.setattr(sources, "plugins", lambda: found)
    return found


def test_every_registration_resolves() -> None:
    plugin = EntryPoint("sources", "llmcore_sources.plugin", plugins.GROUP if hasattr(plugins, "GROUP") else "llmcore")
    for source in plugins.load([plugin]).sources.values():
        matches = plugins.resolve(source.matches)
        assert callable(plugins.resolve(source.fetch))
        assert all(matches(example) for example in source.example.split(", "))


def test_directory_and_file(tmp_path: Path, only_sources: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    assert sources.fetch(str(tmp_path)) == tmp_path
    assert sources.fetch(f"  {file}\n") == file
    monkeypatch.chdir(tmp_path)
    assert sources.fetch("m.gguf") == Path("m.gguf")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.fetch("~/m.gguf") == file


def test_existing_directory_wins_over_a_hub_id(
    tmp_path: Path, only_sources: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.matches("org/model")
    assert sources.fetch("org/model") == Path("org/model")


def test_missing_path_lists_near_names(tmp_path: Path) -> None:
    for name in ("smollm2.gguf", "notes.txt", "qwen.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(
        ModelReferenceError, match=r"smollm.gguf: there is no such[\s\S]*did you mean \S*smollm2\.gguf"
    ) as caught:
        local.fetch(str(tmp_path / "smollm.gguf"), FetchOptions())
    assert "notes.txt" not in str(caught.value)
    with pytest.raises(ModelReferenceError, match=r"holds qwen\.gguf, smollm2\.gguf"):
        local.fetch(str(tmp_path / "zzzzzzzz"), FetchOptions())
    with pytest.raises(ModelReferenceError, match="does not exist either"):
        local.fetch(str(tmp_path / "no" / "where"), FetchOptions())
    with pytest.raises(ModelReferenceError, match="in full"):
        local.fetch("~nobody-of-this-name/x", FetchOptions())


def test_digest_of_a_path(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    assert local.fetch(str(file), FetchOptions(sha256=hashlib.sha256(b"GGUF").hexdigest())) == file
    with pytest.raises(DownloadError, match="sha256 is"):
        local.fetch(str(file), FetchOptions(sha256="1" * 64))
    with pytest.raises(ModelReferenceError, match="single file"):
        local.fetch(str(tmp_path), FetchOptions(sha256="1" * 64))


@pytest.mark.parametrize(
    "reference", ["", "   ", "gpt2", "a/b/c", "s3://bucket/x", "org/name:", "C:thing", "nul\0byte"]
)
def test_no_source_takes_it(
    reference: str, only_sources: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelReferenceError, match=r"is not a reference[\s\S]*\./models/my-model[\s\S]*pypi:[\s\S]*org/model"
    ):
        sources.fetch(reference)


@pytest.mark.parametrize("reference", ["./org/name", "../name", "/a", "~/x", "name.gguf", "dir/name.gguf", "."])
def test_meant_as_a_path(reference: str) -> None:
    assert local.matches(reference) and not pypi.matches(reference)


def test_system_errors_become_ours(tmp_path: Path, only_sources: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", _no_space)
    with pytest.raises(DownloadError, match="No space left"):
        sources.fetch("pypi:x==1#a.gguf", FetchOptions(cache_dir=_made(tmp_path / "cache")))


def _made(folder: Path) -> Path:
    import os

    os.makedirs(folder / "models")  # noqa: PTH103  (Path.mkdir is the one that fails here)
    return folder


def _no_space(self: Path, *args: object, **options: object) -> None:
    if self.name.startswith("x-1"):
        raise OSError(28, "No space left on device", str(self))

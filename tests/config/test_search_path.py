"""Installed packages bring config files by an entry point; a broken one costs a warning."""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl

from helpers.settings import INSTALLED, Jobs
from hydra_plugins.llmcore_searchpath import LlmcoreSearchPath
from llmcore.config import search_path
from llmcore.config.models import lookup, named_models, reference_of
from llmcore.config.search_path import ConfigWarning, offered
from llmcore.errors import ConfigError


def entry(name: str, package: str) -> EntryPoint:
    return EntryPoint(name, package, search_path.GROUP)


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package ``other_conf.here`` with backends and models, registered as an installed one would be."""
    folder = tmp_path / "other_conf" / "here"
    for group in ("backend", "model"):
        (folder / group).mkdir(parents=True)
    (tmp_path / "other_conf" / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "backend" / "theirs.yaml").write_text("name: theirs\norder: [theirs, torch]\n")
    (folder / "backend" / "torch.yaml").write_text("name: stolen\norder: [stolen]\n")
    (folder / "model" / "parrot.yaml").write_text("ref: org/parrot\nsha256: null\n")
    (folder / "model" / "odd.yaml").write_text("reff: org/parrot\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(search_path, "entry_points", lambda group: [entry("theirs", "other_conf.here")])
    return folder


def test_a_third_partys_files_compose(third_party: Path) -> None:
    jobs = Jobs()
    installed = replace(INSTALLED, backends=(*INSTALLED.backends, "theirs"))
    assert jobs.run(["backend=theirs", "model=parrot"], installed) == 0
    config = jobs.jobs[0].config
    assert config.backend.name == "theirs"
    assert config.model.ref == "org/parrot"


def test_ours_cannot_be_replaced(third_party: Path) -> None:
    jobs = Jobs()
    jobs.run(["backend=torch"])
    assert jobs.jobs[0].config.backend.name == "torch"


def test_named_models(third_party: Path) -> None:
    assert {"smollm2", "parrot"} <= set(named_models())
    assert "custom" not in named_models()
    assert reference_of("parrot") == "org/parrot"
    assert reference_of("org/whatever") == "org/whatever"
    assert len(lookup("smollm2").sha256 or "") == 64
    with pytest.raises(ConfigError, match=r"odd\.yaml"):
        lookup("odd")


@pytest.mark.parametrize("package", ["no_such_package", "no_such.package", "json.decoder", "raises_conf.x"])
def test_a_broken_one_is_a_warning(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raises_conf").mkdir()
    (tmp_path / "raises_conf" / "__init__.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(ConfigWarning, match="'bad' of unknown is ignored"):
        assert offered([entry("bad", package)]) == []


def test_loading_can_be_limited(third_party: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCORE_LOAD_PLUGINS", "another")
    assert offered() == []
    monkeypatch.setenv("LLMCORE_LOAD_PLUGINS", "another, theirs")
    assert [package.package for package in offered()] == ["other_conf.here"]


@pytest.mark.parametrize(("main", "appended"), [("pkg://llmcore_conf", 1), ("pkg://somebody.conf", 0)])
def test_other_applications_of_hydra_are_left_alone(third_party: Path, main: str, appended: int) -> None:
    path = ConfigSearchPathImpl()
    path.append("main", main)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LlmcoreSearchPath().manipulate_search_path(path)
    assert len(path.get_path()) == 1 + appended

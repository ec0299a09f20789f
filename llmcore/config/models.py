"""The models that have short names: the files of the config group ``model``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from llmcore.config import own
from llmcore.config.schema import ModelConfig
from llmcore.config.search_path import OWN, offered
from llmcore.errors import ConfigError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

NAME = re.compile(r"\w+", re.ASCII)  # of a file of ours; a reference with a slash or a dot is none
CUSTOM = "custom"  # the option that stands for "any reference"


def named_models() -> dict[str, Traversable]:
    """Short name → file, of our package and of all that installed packages offer; ours win."""
    from importlib.resources import files

    found: dict[str, Traversable] = {}
    for package in (OWN, *(offer.package for offer in offered())):
        folder = files(package) / "model"
        for file in folder.iterdir() if folder.is_dir() else ():
            name, dot, suffix = file.name.rpartition(".")
            if dot and suffix == "yaml" and name != CUSTOM:
                found.setdefault(name, file)
    return found


def lookup(model: str) -> ModelConfig:
    """The settings of a model by its short name; what is no short name is taken as a reference.

    Raises:
        ConfigError: the file of that name cannot be used.
    """
    ours = own.read(f"model/{model}") if NAME.fullmatch(model) and model != CUSTOM else None
    if ours is not None:
        return ModelConfig(**ours)
    file = named_models().get(model)
    if file is None:
        return ModelConfig(ref=model)
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        values = OmegaConf.create(file.read_text(encoding="utf-8"))
        merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), values)
        return cast(ModelConfig, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file}: {error}", remedy="llmcore_conf/model/smollm2.yaml shows how it should look"
        ) from error


def name_of(ref: str) -> str:
    """The short name that stands for a reference; the reference itself where there is none."""
    return next((name for name in sorted(named_models()) if lookup(name).ref == ref), ref)


def reference_of(model: str) -> str:
    """The model reference behind a short name; anything else is returned as it is."""
    return lookup(model).ref

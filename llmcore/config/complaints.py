"""What is wrong with an override or a config file, in our words: the key, the reason, the near names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import MarkedYAMLError  # type: ignore[import-untyped]

from llmcore.errors import ConfigError, near

TARGET = "_target_"
GRAMMAR = "write key=value, and quote a value that holds blanks or any of ,:(){}[]#~ like key='a, b'"


def read_overrides(overrides: Sequence[str], keys: Sequence[str]) -> list[Override]:
    """Parses overrides; refuses those that name keys which do not exist, or that would have Hydra build objects.

    Args:
        keys: every dotted key that there is.

    Raises:
        ConfigError: naming the first such override.
    """
    parser = OverridesParser.create()
    read = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0].removeprefix(f"Error parsing override {text!r}").strip()
            raise ConfigError(f"cannot read {text!r}" + (f": {reason}" if reason else ""), remedy=GRAMMAR) from error
        if TARGET in text:
            raise refused_target(text)
        key = override.key_or_group
        if not _is_hydras(key) and "/" not in key and key not in keys:
            raise unknown_key(key, keys)
        read.append(override)
    return read


def _is_hydras(key: str) -> bool:
    return key.partition(".")[0].partition("/")[0] == "hydra"


def refused_target(place: str) -> ConfigError:
    """Configuration says what to run, never what to import."""
    return ConfigError(f"{place}: {TARGET} is refused", remedy="name an installed backend or plugin instead")


def refuse_targets(composed: DictConfig) -> None:
    """Raises :class:`ConfigError` if a composed config has Hydra build anything but its own launcher and sweeper."""
    values: Any = OmegaConf.to_container(composed, resolve=False)
    for key in ("launcher", "sweeper"):
        values.get("hydra", {}).pop(key, None)
    for place in _targets(values):
        raise refused_target(place)


def _targets(values: Any, place: str = "") -> Iterator[str]:
    """Dotted places of ``_target_`` keys in nested dicts and lists."""
    if isinstance(values, list):
        values = dict(enumerate(values))
    if isinstance(values, dict):
        for key, value in values.items():
            if key == TARGET:
                yield place.removesuffix(".") or "the config"
            yield from _targets(value, f"{place}{key}.")


def unknown_key(key: str, keys: Sequence[str]) -> ConfigError:
    """An error with near names: near as a whole, or the same last part elsewhere; and the neighbours that exist."""
    last = {known.rpartition(".")[2]: known for known in reversed(keys)}
    close = difflib.get_close_matches(key, keys, n=2, cutoff=0.75)
    close += [last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], last, n=2, cutoff=0.7)]
    hint = f"did you mean {' or '.join(map(repr, dict.fromkeys(close)))}? " if close else ""
    if _is_hydras(key):
        return ConfigError(f"Hydra has no setting {key!r}", remedy="`--cfg hydra` shows Hydra's settings")
    parent = key.rpartition(".")[0]
    while parent and parent not in keys:
        parent = parent.rpartition(".")[0]
    beside = [known for known in keys if known.rpartition(".")[0] == parent]
    return ConfigError(f"there is no setting {key!r}", remedy=f"{hint}known: {', '.join(beside)}")


def explained(error: Exception, keys: Sequence[str]) -> ConfigError:
    """Hydra's or OmegaConf's exception as a :class:`ConfigError`; any other exception is raised again."""
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(cause, MissingMandatoryValue):
        return ConfigError(f"{cause.full_key} is not given", remedy=f"add {cause.full_key}=…")
    if isinstance(cause, OmegaConfBaseException):
        return _bad_value(error, cause, keys)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return ConfigError(f"{mark.name}:{mark.line + 1}: {error.problem}", remedy="repair that YAML file")
    if isinstance(error, HydraException | ValueError):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return ConfigError(lines[0] if lines else type(error).__name__, remedy="; ".join(lines[1:4]))
    raise error


def _missing_option(error: MissingConfigException) -> ConfigError:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if not group or error.options is None:
        return ConfigError(
            str(error).partition("\n")[0], remedy="`--info searchpath` shows where configs are looked for"
        )
    remedy = near(option, error.options)
    if group == "model":
        remedy += "; or a path, a hub id (org/name), or pypi:…"
    return ConfigError(f"{group}={option}: there is no such option", remedy=remedy)


def _bad_value(error: Exception, cause: Any, keys: Sequence[str]) -> ConfigError:
    key = cause.full_key or ""
    reason = (cause.msg or str(cause)).splitlines()[0]
    if key == TARGET or key.endswith(f".{TARGET}"):
        return refused_target(key)
    if reason.startswith("Key '"):
        return unknown_key(key, keys)
    if "ListConfig" in reason:
        return ConfigError(f"{key} takes a list", remedy=f"write {key}=[…]")
    where = str(error).partition(":")[0] if str(error).startswith("In '") else ""  # a config file, not an override
    return ConfigError(
        f"{key}: {reason}" + (f" ({where[0].lower()}{where[1:]})" if where else ""),
        remedy="`--cfg job` shows every setting with a value of its type",
    )

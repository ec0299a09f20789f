"""Discovery of plugins, and look-up of what they offer, by name.

pluggy runs at start-up only: :func:`load` reads the entry points of the group ``llmcore`` once and collects the
records of every hook into a :class:`Plugins`. A third-party plugin that fails to import costs one warning that
names its distribution; it is an error only when something of it is asked for. ``LLMCORE_LOAD_PLUGINS``
(comma-separated entry-point names, empty for the built-in ones alone) limits what is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

import pluggy

from llmcore import hookspecs
from llmcore.errors import PluginError, near
from llmcore.hookspecs import BackendInfo, CommandInfo, FamilyInfo, FormatInfo, PolicyInfo, SourceInfo, TokenizerInfo

DISTRIBUTION = "llmcore"
Record = TypeVar("Record")
Owner = tuple[str, str]  # name and version of a distribution


class PluginWarning(UserWarning):
    """An installed plugin could not be loaded; everything else works."""


@dataclass(frozen=True)
class Loaded:
    """One entry point: whose it is, what it points to, and what went wrong if it did not load."""

    name: str
    distribution: str
    version: str
    module: str
    error: str = ""


@dataclass
class Plugins:
    """All records of all loaded plugins, each under its name."""

    loaded: list[Loaded] = field(default_factory=list)
    backends: dict[str, BackendInfo] = field(default_factory=dict)
    families: dict[str, FamilyInfo] = field(default_factory=dict)
    formats: dict[str, FormatInfo] = field(default_factory=dict)
    tokenizers: dict[str, TokenizerInfo] = field(default_factory=dict)
    sources: dict[str, SourceInfo] = field(default_factory=dict)
    commands: dict[str, CommandInfo] = field(default_factory=dict)
    policies: dict[str, PolicyInfo] = field(default_factory=dict)
    providers: dict[tuple[str, str], str] = field(default_factory=dict)  # (kind, name) → distribution

    def broken(self) -> list[Loaded]:
        """The entry points that did not load."""
        return [entry for entry in self.loaded if entry.error]

    def backend(self, name: str) -> BackendInfo:
        """The backend ``name``; raises :class:`PluginError` with near names, or with why its plugin is broken."""
        return self._get("backend", self.backends, name)

    def command(self, name: str) -> CommandInfo:
        """The subcommand ``name``; raises like :meth:`backend`."""
        return self._get("command", self.commands, name)

    def policy(self, name: str) -> PolicyInfo:
        """The policy ``name``; raises like :meth:`backend`."""
        return self._get("policy", self.policies, name)

    def _get(self, kind: str, table: dict[str, Record], name: str) -> Record:
        if name in table:
            return table[name]
        for entry in self.broken():
            if name in (entry.name, entry.distribution):
                raise PluginError(
                    f"{kind} {name!r} comes from {entry.distribution} {entry.version}, which is broken: {entry.error}",
                    remedy=f"repair or uninstall {entry.distribution}",
                )
        raise PluginError(f"there is no {kind} {name!r}", remedy=near(name, table))


def resolve(target: str) -> Any:
    """Imports ``"package.module:attribute"``; raises :class:`PluginError` naming the string and what failed.

    Whatever the module raises when it is imported is its failure, :class:`SystemExit` too; an interrupt is the user's.
    """
    module, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"cannot import {target!r}: {error}", remedy="is the package that offers it installed?"
        ) from error
    except (Exception, SystemExit) as error:  # third-party code
        raise PluginError(
            f"cannot import {target!r}: {type(error).__name__}: {error}", remedy="repair the package that offers it"
        ) from error
    return found


def origin(module: str) -> Path | None:
    """The file that ``module`` is in; none but its packages are imported."""
    if module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
    else:
        spec = importlib.util.find_spec(module)
        file = spec.origin if spec else None
    return Path(file) if file and Path(file).is_file() else None


def _wanted(found: Iterable[EntryPoint]) -> list[tuple[EntryPoint, Owner]]:
    """The entry points to load, each with its owner; built-ins first."""
    limit = os.environ.get("LLMCORE_LOAD_PLUGINS")
    names = None if limit is None else {name.strip() for name in limit.split(",") if name.strip()}
    found = list(found)
    unknown = (names or set()) - {entry.name for entry in found}
    if unknown:
        warnings.warn(f"LLMCORE_LOAD_PLUGINS names {sorted(unknown)}: not installed", PluginWarning, stacklevel=3)
    owners = {id(entry.dist): entry.dist for entry in found}  # most entry points are of one distribution: ours
    read = {key: _owner(dist) for key, dist in owners.items()}
    ours, theirs = [], []
    for entry in sorted(found, key=lambda e: e.name):
        owner = read[id(entry.dist)]
        if owner[0] == DISTRIBUTION:
            ours.append((entry, owner))
        elif names is None or entry.name in names:
            theirs.append((entry, owner))
    return ours + theirs  # built-ins first: a third party may not take a built-in's name


def _owner(dist: Distribution | None) -> Owner:
    if dist is None:
        return "unknown", "0"
    metadata = dist.metadata  # read and parsed at each access
    return metadata["Name"], metadata["Version"]


KINDS: tuple[tuple[str, str, str], ...] = (
    ("backend", "backends", "name"),
    ("family", "families", "name"),
    ("format", "formats", "name"),
    ("tokenizer", "tokenizers", "kind"),
    ("source", "sources", "name"),
    ("command", "commands", "name"),
    ("policy", "policies", "name"),
)


def _admit(plugins: Plugins, manager: pluggy.PluginManager, entry: EntryPoint, distribution: str) -> None:
    """Imports one entry point and takes over what it offers; raises whatever is wrong with it."""
    plugin = entry.load()
    manager.register(plugin, name=f"{distribution}:{entry.name}")
    manager.check_pending()  # a misspelt hook fails here, not by never being called
    offered = [(kind, table, key, record) for kind, table, key in KINDS for record in _records(plugin, table)]
    for kind, table, key, record in offered:
        name = getattr(record, key)
        if name in getattr(plugins, table):
            raise PluginError(
                f"{kind} {name!r} of {distribution} is already offered by {plugins.providers[kind, name]}",
                remedy=f"uninstall one of them, or leave {entry.name!r} out of LLMCORE_LOAD_PLUGINS",
            )
    for kind, table, key, record in offered:
        getattr(plugins, table)[getattr(record, key)] = record
        plugins.providers[kind, getattr(record, key)] = distribution


def _records(plugin: object, table: str) -> list[Any]:
    hook = getattr(plugin, f"llmcore_{table}", None)
    return list(hook()) if hook is not None else []


def load(found: Iterable[EntryPoint] | None = None) -> Plugins:
    """Reads all entry points (or just ``found``) and collects what they offer."""
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    plugins = Plugins()
    for entry, (name, version) in _wanted(entry_points(group=hookspecs.GROUP) if found is None else found):
        error = ""
        try:
            _admit(plugins, manager, entry, name)
        except (Exception, SystemExit) as failure:  # third-party code: whatever it raises must not take the others down
            if name == DISTRIBUTION:
                raise
            if (loaded := manager.get_plugin(f"{name}:{entry.name}")) is not None:
                manager.unregister(loaded)  # else its misspelt hook would fail every plugin after it
            error = f"{type(failure).__name__}: {failure}"
            warnings.warn(f"plugin {entry.name!r} of {name} {version} is ignored: {error}", PluginWarning, stacklevel=2)
        plugins.loaded.append(Loaded(entry.name, name, version, entry.value, error))
    return plugins


@cache
def plugins() -> Plugins:
    """The plugins of this environment, read once per process."""
    return load()

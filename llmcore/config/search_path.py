"""Where config groups come from: our own package, and those that installed packages name under ``llmcore.conf``.

A package offers groups (``backend/mine.yaml``, ``model/mine.yaml`` …) by an entry point in the group ``llmcore.conf``
whose value is the package that holds them. Ours are searched first: nobody can take the place of a file of ours.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

GROUP = "llmcore.conf"
OWN = "llmcore_conf"


class ConfigWarning(UserWarning):
    """A package offers config files that cannot be found; everything else works."""


@dataclass(frozen=True)
class ConfPackage:
    """A package with config groups, and the distribution that offers it."""

    distribution: str
    package: str


def offered(found: Iterable[EntryPoint] | None = None) -> list[ConfPackage]:
    """What installed distributions offer, sorted; a broken offer is one warning. ``LLMCORE_LOAD_PLUGINS`` limits it."""
    limit = os.environ.get("LLMCORE_LOAD_PLUGINS")
    wanted = None if limit is None else {name.strip() for name in limit.split(",")}
    packages = []
    for entry in sorted(entry_points(group=GROUP) if found is None else found, key=lambda e: (e.name, e.value)):
        if wanted is not None and entry.name not in wanted:
            continue
        distribution = entry.dist.name if entry.dist is not None else "unknown"
        problem = _problem(entry.value)
        if problem:
            warnings.warn(f"config {entry.name!r} of {distribution} is ignored: {problem}", ConfigWarning, stacklevel=2)
        else:
            packages.append(ConfPackage(distribution, entry.value))
    return packages


def _problem(package: str) -> str | None:
    """Why ``package`` cannot be searched, or None."""
    try:
        spec = importlib.util.find_spec(package)
    except Exception as error:  # a dotted name imports the parent, which is a third party's code
        return f"{type(error).__name__}: {error}"
    if spec is None or not spec.submodule_search_locations:
        return f"there is no package {package}"
    return None

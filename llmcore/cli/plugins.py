"""``llmcore plugins``: every plugin, whose it is, whether it loaded, and what it offers."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmcore.cli.console import table
from llmcore.cli.flags import parse
from llmcore.config.arguments import JSON
from llmcore.config.search_path import offered
from llmcore.plugins import KINDS, Loaded, Plugins, plugins

USAGE = "usage: llmcore plugins [--json]"


def main(argv: Sequence[str]) -> int:
    """Prints the table; returns the exit code."""
    given, _ = parse(argv, (JSON,), USAGE)
    if given is None:
        return 0
    found = describe(plugins())
    if "--json" in given:
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return 0
    rows = [
        (p["name"], p["distribution"], p["version"], "broken" if p["error"] else "loaded", _offers(p))
        for p in found["plugins"]
    ]
    print(table(("plugin", "distribution", "version", "status", "offers"), rows))
    for conf in found["conf"]:
        print(f"\nconfig groups of {conf['distribution']}: {conf['package']}")
    return 0


def describe(installed: Plugins) -> dict[str, Any]:
    """All plugins with what they offer, by kind, as plain data."""
    return {
        "plugins": [{**asdict(entry), "offers": offers(entry)} for entry in installed.loaded],
        "conf": [asdict(package) for package in offered()],
    }


def offers(entry: Loaded) -> dict[str, list[str]]:
    """Kind → names, of one plugin; nothing for one that did not load."""
    if entry.error:
        return {}
    module = importlib.import_module(entry.module)  # loaded already
    found = {}
    for kind, hook_name, key in KINDS:
        hook = getattr(module, f"llmcore_{hook_name}", None)
        names = [getattr(record, key) for record in (hook() if hook is not None else ())]
        if names:
            found[kind] = names
    return found


def _offers(plugin: dict[str, Any]) -> str:
    if plugin["error"]:
        return str(plugin["error"])
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in plugin["offers"].items())

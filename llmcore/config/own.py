"""Our own config files, read without Hydra."""

from __future__ import annotations

import pkgutil
from typing import Any

from llmcore.config.search_path import OWN


def read(name: str) -> dict[str, Any] | None:
    """What the file ``name`` (``infer``, ``backend/numba``) of our package holds; None if there is none."""
    import yaml  # type: ignore[import-untyped]

    try:
        text = pkgutil.get_data(OWN, f"{name}.yaml")
    except OSError:
        return None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML was built with it
    values: dict[str, Any] = yaml.load(text, loader) or {}
    return values

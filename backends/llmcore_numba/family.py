"""Kernels that are made when they are first asked for, by name: ``linear.int4``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Family:
    """``family.name`` is ``make(name)``, made once; ``make`` raises :class:`AttributeError` for a name that is none."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        self.make = make

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = self.make(name)
        setattr(self, name, made)
        return made

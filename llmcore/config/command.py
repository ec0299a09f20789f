"""What a command that runs from settings is, and what it is given; importing this imports no Hydra."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from llmcore.config.arguments import Flag
from llmcore.config.schema import Config
from llmcore.errors import LlmcoreError

FALLBACK = "torch"  # runs every op


@dataclass(frozen=True)
class Command:
    """A command that runs from settings. ``name`` is what its user types: ``llama_infer``, ``llmcore explain``."""

    name: str
    summary: str
    flags: tuple[Flag, ...] = ()
    config: str = "infer"


@dataclass(frozen=True)
class Installed:
    """What the rest of this environment offers to the settings.

    Attributes:
        ops: names of ops: the keys of ``backend.ops``.
        backends: names of backends; one that brings no config file gets an option of its name.
        is_reference: whether a text could be a model reference.
    """

    ops: Collection[str]
    backends: Collection[str]
    is_reference: Callable[[str], bool]


@dataclass(frozen=True)
class Job:
    """One run: its settings and our flags; ``number`` counts the runs of a sweep and is None outside of one."""

    config: Config
    given: Mapping[str, str]
    overrides: tuple[str, ...] = ()
    number: int | None = None


Task = Callable[[Job], int]
Report = Callable[[LlmcoreError], int]

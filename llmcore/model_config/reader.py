"""Typed reads from a config, and the refusal of whatever nobody has read."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llmcore.errors import CheckpointError, UnsupportedModelError
from llmcore.model_config.keys import LIMIT, LIMITS, REMEDIES

SHOWN = 80  # characters of a value in a message


class ConfigReader:
    """One object of a config. Keys whose value is null count as absent.

    Args:
        config: the content of ``config.json``, or what a format plugin translated to its keys.
        ignore: keys to treat as absent, those of nested objects with their path (``rope_scaling.attn_factor``).
        prefix: the path of a nested object, with its dot.
    """

    def __init__(self, config: Mapping[str, Any], ignore: Sequence[str] = (), prefix: str = "") -> None:
        self.prefix = prefix
        self.ignore = tuple(ignore)
        self.values = {
            key: value for key, value in config.items() if value is not None and prefix + key not in self.ignore
        }
        self._read: set[str] = set()

    def get(self, key: str) -> Any:
        """The value as it is; None where there is none."""
        self._read.add(key)
        return self.values.get(key)

    def count(self, key: str, default: int | None = None) -> int:
        """A positive integer below its limit; required where there is no default."""
        value = self._or_default(key, default)
        limit = LIMITS.get(key, LIMIT)
        if type(value) is not int or not 0 < value < limit:
            raise self.damaged(key, f"is {shown(value)}, not an integer from 1 to {limit - 1}")
        return value

    def number(self, key: str, default: float | None = None, *, least: float = 0.0) -> float:
        """A finite number above zero and not below ``least``; required where there is no default."""
        value = self._or_default(key, default)
        if type(value) not in (int, float) or not (0 < value <= sys.float_info.max and value >= least):
            raise self.damaged(key, f"is {shown(value)}, not a number {f'from {least:g}' if least else 'above 0'}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._or_default(key, default)
        if type(value) is not bool:
            raise self.damaged(key, f"is {shown(value)}, not true or false")
        return value

    def section(self, key: str) -> ConfigReader | None:
        """The nested object ``key``; None where there is none."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.damaged(key, f"is {shown(value)}, not an object")
        return ConfigReader(value, self.ignore, f"{self.prefix}{key}.")

    def finish(self, harmless: Collection[str], neutral: Mapping[str, tuple[object, ...]]) -> None:
        """Refuses every key that nothing has read and that is neither harmless nor set to a neutral value.

        Raises:
            UnsupportedModelError: naming the key and its value.
        """
        for key, value in self.values.items():
            if key not in self._read and key not in harmless and value not in neutral.get(key, ()):
                raise self.unsupported(key, value)

    def unsupported(self, key: str, value: object, why: str = "is not supported") -> UnsupportedModelError:
        """The error for something that is not implemented."""
        path = self.prefix + key
        general = f"use another checkpoint, or model.ignore_config_keys=[{path}] if you know that it changes no logits"
        return UnsupportedModelError(
            f"config: {path}: {shown(value)} {why}", key=path, remedy=REMEDIES.get(path, general)
        )

    def damaged(self, key: str, what: str) -> CheckpointError:
        """The error for a value that cannot be."""
        return CheckpointError(
            f"config: {self.prefix}{key} {what}", remedy="get the config again from the model's source"
        )

    def _or_default(self, key: str, default: object) -> Any:
        value = self.get(key)
        if value is None and default is None:
            raise self.damaged(key, "is missing")
        return default if value is None else value


def shown(value: object) -> str:
    """``value`` for a message, in bounded length."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print the longest ones
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."

"""Ranges of the settings: what the types alone do not say."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from llmcore.config import own
from llmcore.config.schema import Config
from llmcore.errors import ConfigError, near

SHA256_DIGITS = 64
AUTO = "auto"


@dataclass(frozen=True)
class Range:
    """``low`` to ``high``; ``above`` leaves ``low`` itself out."""

    low: float
    high: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in it; NaN never does."""
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        return low if self.high == math.inf else f"{low} and at most {_written(self.high)}"


def _written(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


RANGES = {
    "threads": Range(0, 1024),
    "max_new_tokens": Range(1),
    "seed": Range(0, 2**63 - 1),
    "sampling.temperature": Range(0, 100),
    "sampling.top_k": Range(0),
    "sampling.top_p": Range(0, 1, above=True),
    "sampling.min_p": Range(0, 1),
    "sampling.repetition_penalty": Range(0, 100, above=True),
    "sampling.presence_penalty": Range(-100, 100),
    "sampling.frequency_penalty": Range(-100, 100),
    "sampling.stop_token_ids": Range(0),
    "sampling.logprobs": Range(0, 100),
    "engine.max_context": Range(0, 2**24),
    "engine.max_batch_tokens": Range(1, 65536),
    "engine.max_seqs": Range(1, 4096),
    "engine.max_rows": Range(1, 65536),
    "engine.page_size": Range(1, 4096),
    "engine.kv_pages": Range(0, 2**24),
    "engine.buckets": Range(1, 65536),
    "server.port": Range(0, 65535),
    "server.max_waiting": Range(1, 1 << 20),
    "server.max_body_mb": Range(1, 1024),
    "server.max_bodies_mb": Range(1, 1 << 20),
    "server.max_connections": Range(1, 1 << 20),
    "server.read_timeout_s": Range(0, 3600, above=True),
    "server.drain_s": Range(0, 86400),
}


def check(config: Config) -> None:
    """Raises :class:`ConfigError` for the first setting that is out of range, by its key."""
    for key, allowed in RANGES.items():
        for value in _values(_get(config, key)):
            if not allowed.holds(value):
                raise ConfigError(f"{key} is {value}", remedy=f"it must be {allowed}")
    for key in ("model.ref", "cache_dir", "backend.order", "sampling.stop"):
        if any(text == "" for text in _values(_get(config, key))):
            raise ConfigError(f"{key} is empty", remedy="give at least one character, or leave it out")
    if not config.backend.order:
        raise ConfigError("backend.order names no backend", remedy="choose one with backend=NAME")
    digest = config.model.sha256
    if digest is not None and (len(digest) != SHA256_DIGITS or set(digest.lower()) - set("0123456789abcdef")):
        raise ConfigError(
            f"model.sha256 is {digest!r}", remedy=f"it must be {SHA256_DIGITS} hexadecimal digits, or null"
        )


def check_backends(config: Config, installed: Collection[str]) -> None:
    """Raises :class:`ConfigError` for a name in ``backend.order`` that no installed backend has.

    ``auto`` passes over what our own order names and this environment lacks; for any other name it would hide a typo.
    """
    spared = _own_order() if config.backend.name == AUTO else []
    for name in config.backend.order:
        if name not in installed and name not in spared:
            raise ConfigError(f"backend.order: there is no backend {name!r}", remedy=near(name, installed))
    if not any(name in installed for name in config.backend.order):
        raise ConfigError(
            f"no backend of backend.order={config.backend.order} is installed",
            remedy=f"installed: {', '.join(sorted(installed))}",
        )


def _own_order() -> list[str]:
    return list((own.read(f"backend/{AUTO}") or {}).get("order", ()))


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _values(value: Any) -> Iterator[Any]:
    """What a setting holds: itself, a list's items, or nothing for null."""
    if value is not None:
        yield from value if isinstance(value, list) else (value,)

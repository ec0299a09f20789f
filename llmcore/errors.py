"""Every error that llmcore raises on bad input, each naming the thing and the remedy.

A caller that wants to catch anything of ours catches :class:`LlmcoreError`. Programming errors
(broken invariants) stay ``AssertionError``; they are bugs, not input.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class LlmcoreError(Exception):
    """Base of all errors about something that the user gave us.

    Args:
        message: what is wrong, naming the thing.
        remedy: what to do about it; printed on its own line.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.remedy}" if self.remedy else self.message


class ConfigError(LlmcoreError):
    """A setting is unknown, of the wrong type, or out of range."""


class ModelReferenceError(LlmcoreError):
    """A model reference (path, hub id, ``pypi:`` …) does not name something that we can load."""


class DownloadError(ModelReferenceError):
    """A model reference is well formed, but its files could not be had."""


class CheckpointError(LlmcoreError):
    """A checkpoint file is damaged, malicious, incomplete or of a kind that we refuse.

    Args:
        message: what is wrong.
        file: the file it is wrong in.
        tensor: the tensor concerned, if any.
        offset: byte offset in the file, if known.
    """

    def __init__(
        self,
        message: str,
        *,
        file: Path | str | None = None,
        tensor: str | None = None,
        offset: int | None = None,
        remedy: str = "",
    ) -> None:
        place = "".join(
            (
                f"{file}: " if file is not None else "",
                f"tensor {tensor!r}: " if tensor is not None else "",
                message,
                f" (at byte {offset})" if offset is not None else "",
            )
        )
        super().__init__(place, remedy=remedy)
        self.file = Path(file) if file is not None else None
        self.tensor = tensor
        self.offset = offset


class UnsupportedModelError(LlmcoreError):
    """The model asks for something that is not implemented; ``key`` is the config key that does."""

    def __init__(self, message: str, *, key: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.key = key


class TokenizerError(LlmcoreError):
    """A tokenizer's data is damaged or of a kind that we do not read."""


class ChatTemplateError(TokenizerError):
    """A chat template is missing, fails to parse, fails to render, or exceeds its bounds."""


class PluginError(LlmcoreError):
    """A plugin could not be loaded or declares something impossible."""


class RegistryError(LlmcoreError):
    """No kernel can be bound: unknown op or backend, or no backend supports the node."""


class RequestError(LlmcoreError):
    """A generation request is invalid; ``field`` names the parameter at fault."""

    def __init__(self, message: str, *, field: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.field = field


class BusyError(LlmcoreError):
    """There is no room for a request now; later there may be."""


class GenerationError(LlmcoreError):
    """A request that was well formed failed while it ran: a kernel raised, or the model computed NaN."""


class UnanswerableError(GenerationError):
    """A request's own rules leave no answer: to ask again would not help."""


class InternalError(AssertionError):
    """A broken invariant of ours that a check has found: a bug, not input."""


def near(name: str, known: Iterable[str]) -> str:
    """A remedy sentence for an unknown ``name``: the nearest known names, and all that exist."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{hint}known: {', '.join(names) or 'none'}"

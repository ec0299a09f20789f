"""``model=``: names of configs, or model references (a path, a hub id, ``pypi:…``), one or several to sweep over."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from llmcore.config.models import CUSTOM
from llmcore.config.quoting import quoted, uninterpolated

KEY = "model="
FUNCTION = re.compile(r"\w+\(.*\)", re.DOTALL)  # Hydra's own: choice(a,b), glob(*) …
PART = re.compile(r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,'"])+""", re.DOTALL)


@dataclass
class References:
    """Rewrites ``model=`` before Hydra sees it: its grammar has no place for ``~``, ``#`` or blanks.

    One reference becomes ``model=custom model.ref='…'``. In a list each becomes a config option of its own, since a
    sweep varies one key at a time; ``stored`` holds these, name → values of the option.

    Attributes:
        options: the names of configs.
        is_reference: whether a text that is none of them could be a model reference.
        sweep: whether commas separate the values of a sweep.
    """

    options: Collection[str]
    is_reference: Callable[[str], bool]
    sweep: bool = False
    stored: dict[str, dict[str, str]] = field(default_factory=dict)

    def rewrite(self, arguments: Sequence[str]) -> list[str]:
        """The arguments with every ``model=`` in Hydra's terms.

        ``model.ref=`` by itself means another model than the default one, whose ``sha256`` must not be asked of it.
        """
        names = {argument.partition("=")[0].lstrip("+~") for argument in arguments}
        start = [f"{KEY}{CUSTOM}"] if "model.ref" in names and names.isdisjoint(("model", "model.sha256")) else []
        return [*start, *(new for argument in arguments for new in self._rewritten(argument))]

    def _rewritten(self, argument: str) -> list[str]:
        value = argument.removeprefix(KEY)
        if value == argument or self._is_hydras(value):
            return [argument]
        parts = PART.findall(value)
        if self.sweep and len(parts) > 1 and ",".join(parts) == value:
            return [KEY + ",".join(self._option(part) for part in parts)]
        if self.is_reference(unquoted(value)):
            return [f"{KEY}{CUSTOM}", f"model.ref={quoted(unquoted(value))}"]
        return [argument]

    def _is_hydras(self, value: str) -> bool:
        return value in self.options or FUNCTION.fullmatch(value) is not None

    def _option(self, part: str) -> str:
        """The name of a config for one part of a list."""
        text = unquoted(part)
        if text in self.options or not self.is_reference(text):
            return part
        name = f"reference{len(self.stored) + 1}"
        self.stored[name] = {"ref": uninterpolated(text)}
        return name


def unquoted(text: str) -> str:
    """``text`` without the quotes that Hydra's grammar may ask for."""
    text = text.strip()
    quote = text[:1]
    if quote in ("'", '"') and len(text) > 1 and text.endswith(quote):
        return text[1:-1].replace("\\" + quote, quote)
    return text

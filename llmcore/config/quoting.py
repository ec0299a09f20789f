"""Text as a value of Hydra's override grammar."""

from __future__ import annotations

import re


def quoted(text: str) -> str:
    """``text`` such that Hydra's parser and OmegaConf's interpolation give back exactly it.

    Backslashes count only before a quote, before the end and before ``${``, and are doubled there.
    """
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
    text = re.sub(r"(\\+)('|\Z)", lambda found: found[1] * 2 + found[2], text)
    return "'" + text.replace("'", r"\'") + "'"


def uninterpolated(text: str) -> str:
    """``text`` such that OmegaConf takes ``${`` in it literally."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)

"""Models that are on this machine already: a checkpoint directory or a single file such as a ``.gguf``."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from llmcore.errors import ModelReferenceError
from llmcore.weights.cachedir import FetchOptions
from llmcore_sources import digest

STARTS = ("/", "./", "../", "~", ".\\", "..\\")
SHOWN = 5  # names that a message lists


def matches(reference: str) -> bool:
    """Whether it exists as a path, or could only have been meant as one."""
    if not reference or "\0" in reference:
        return False
    if (
        reference in (".", "..")
        or reference.startswith(STARTS)
        or (reference.endswith(".gguf") and ":" not in reference)
    ):
        return True
    return os.path.lexists(Path(reference))


def fetch(reference: str, options: FetchOptions) -> Path:
    """The path itself, checked to exist (and to have the digest that ``options`` pins).

    Raises:
        ModelReferenceError: it does not exist, with near names; or a digest is pinned for a directory.
        DownloadError: the digest is another.
    """
    try:
        path = Path(reference).expanduser()
    except RuntimeError as error:  # ~nobody
        raise ModelReferenceError(f"{reference}: {error}", remedy="give the path in full") from error
    if not path.exists():
        raise ModelReferenceError(f"{path}: there is no such file or directory", remedy=_near(path))
    if options.sha256:
        digest.verify(path, options.sha256)
    return path


def _near(path: Path) -> str:
    """What else is where ``path`` should have been, the nearest names first."""
    folder = path.parent
    if not folder.is_dir():
        return f"{folder} does not exist either; relative paths start from {Path.cwd()}"
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() or entry.suffix == ".gguf")
    except OSError as error:
        return f"{folder} cannot be listed: {error.strerror}"
    close = difflib.get_close_matches(path.name, names, n=SHOWN, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(str(folder / name) for name in close)}?"
    more = ", …" if len(names) > SHOWN else ""
    return f"{folder} holds {', '.join(names[:SHOWN]) + more if names else 'no directory and no .gguf file'}"

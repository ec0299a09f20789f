"""The cache directory: the one place that llmcore writes to unasked.

``LLMCORE_CACHE``, else ``XDG_CACHE_HOME/llmcore``, else ``~/.cache/llmcore``; created with mode 0700. Inside it
``models/`` holds what the sources fetched, ``packed/`` repacked weights, ``kernels/`` compiled kernels.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmcore.errors import ConfigError


class CacheWarning(UserWarning):
    """Something cannot be kept in the cache directory, so every process makes its own."""


Kind = Literal["models", "packed", "kernels"]

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``: ``done`` of ``total`` bytes of ``what`` are there; a ``total`` of 0 is not known."""


@dataclass(frozen=True)
class FetchOptions:
    """How a source fetches a model.

    Attributes:
        cache_dir: cache directory to use in place of the default one.
        sha256: what the model file's digest must be, in hex; empty where it is not pinned.
        offline: use only what is on this machine.
        progress: told of every piece of a download or an extraction; None to stay silent.
    """

    cache_dir: Path | None = None
    sha256: str = ""
    offline: bool = False
    progress: Progress | None = None

    def report(self, what: str, done: int, total: int) -> None:
        """Passes the three on to ``progress``, where there is one."""
        if self.progress is not None:
            self.progress(what, done, total)


def cache_root(cache_dir: Path | None = None) -> Path:
    """Where the cache is (or would be): ``cache_dir`` if given, else what the environment says. Creates nothing."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if own := os.environ.get("LLMCORE_CACHE"):
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME", "")  # a relative XDG_CACHE_HOME is invalid by its specification
    base = Path(xdg) if Path(xdg).is_absolute() else Path("~/.cache").expanduser()
    return base / "llmcore"


def subfolder(kind: Kind, cache_dir: Path | None = None) -> Path:
    """The folder ``kind`` inside the cache, created if need be.

    Raises:
        ConfigError: it cannot be created; or others can write to ``kernels``, which are executed, or ``packed``, which
            kernels trust.
    """
    folder = cache_root(cache_dir) / kind
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the cache directory {folder} cannot be created: {error.strerror}",
            remedy="name a folder that you can write to with the environment variable LLMCORE_CACHE",
        ) from error
    if kind != "models":
        _refuse_foreign(folder)
    return folder


def _refuse_foreign(folder: Path) -> None:
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"the files in {folder} could have been placed there by another user, so they are not used",
            remedy=f"own it alone (chmod 700 {folder}), or name another folder with LLMCORE_CACHE",
        )


@contextmanager
def locked(folder: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds ``folder`` (created if need be) against other processes and threads until the block ends.

    ``on_wait`` is called once if somebody else holds it. The operating system drops the lock of a process that dies.
    """
    import fcntl  # POSIX only, and only fetching needs it

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield  # closing the file releases the lock

"""From a model reference to a file or directory on this machine: the one entry point that everything loads through."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from llmcore.errors import DownloadError, ModelReferenceError
from llmcore.plugins import plugins, resolve
from llmcore.weights.cachedir import FetchOptions


def fetch(reference: str, options: FetchOptions | None = None) -> Path:
    """Makes the model that ``reference`` names available and returns its directory or file.

    Every source plugin is asked, in the order of its priority; the first that takes references of this kind fetches it.

    Raises:
        ModelReferenceError: no source takes it, or it names nothing.
        DownloadError: it could not be had: no network, no access, a wrong digest.
    """
    reference = reference.strip()
    sources = sorted(plugins().sources.values(), key=lambda source: (source.priority, source.name))
    for source in sources:
        if resolve(source.matches)(reference):
            try:
                return cast(Path, resolve(source.fetch)(reference, options or FetchOptions()))
            except OSError as error:  # disk full, no permission …: the same for every source
                raise DownloadError(
                    f"{reference}: {error}", remedy="free space or permissions in the cache directory?"
                ) from error
    kinds = "; ".join(f"{source.example} ({source.summary})" for source in sources)
    raise ModelReferenceError(
        f"{reference!r} is not a reference to a model", remedy=f"give one of these kinds: {kinds or 'none'}"
    )

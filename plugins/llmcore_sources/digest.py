"""SHA-256 digests of model files, and notes beside them that save hashing a file again on every start."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from llmcore.errors import DownloadError, ModelReferenceError


def same(found: str, wanted: str) -> bool:
    """Whether two hex digests are equal; an empty ``wanted`` pins nothing."""
    return not wanted or found.lower() == wanted.strip().lower()


def mismatch(file: Path | str, found: str, wanted: str, remedy: str) -> DownloadError:
    """The error for a file whose digest is not the pinned one."""
    return DownloadError(f"{file}: its sha256 is {found}, not {wanted.strip().lower()}", remedy=remedy)


def sha256_of(path: Path) -> str:
    """The hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, wanted: str) -> None:
    """Raises unless ``path`` is a file whose SHA-256 is ``wanted``."""
    if not path.is_file():
        raise ModelReferenceError(
            f"{path}: a sha256 can be pinned for a single file only, and this is a directory",
            remedy="leave out the sha256",
        )
    found = sha256_of(path)
    if not same(found, wanted):
        raise mismatch(path, found, wanted, "it is damaged or another file: get it again, or correct the pinned sha256")


def note(path: Path, digest: str) -> None:
    """Writes down that ``path``, as it is now, has this digest."""
    found = path.stat()
    record = {"sha256": digest, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
    _beside(path).write_text(json.dumps(record), encoding="utf-8")


def noted(path: Path) -> str | None:
    """The digest written down for ``path``, or None where there is none or the file has changed since."""
    try:
        record = json.loads(_beside(path).read_text(encoding="utf-8"))
        found = path.stat()
        if (record["bytes"], record["mtime_ns"]) == (found.st_size, found.st_mtime_ns):
            return str(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no note, or one that cannot be read: the file is hashed instead
    return None


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".sha256.json")

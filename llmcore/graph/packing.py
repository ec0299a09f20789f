"""Repacking weights: by several threads, and once: what was packed is kept on disk for the next start.

One file in ``<cache>/packed`` holds the weights of one program. Its name says what its bytes depend on: the content of
the checkpoint's files, which tensors are in which layouts, and the source of the packers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from llmcore.errors import CheckpointError
from llmcore.plugins import origin, resolve
from llmcore.weights import packed_file
from llmcore.weights.ledger import Ledger, touch
from llmcore.weights.tensor import Tensor

Array = np.ndarray[Any, Any]
Key = tuple[str, str, int]

UNUSED_S = 30 * 24 * 3600
SUPERSEDED_S = 3600  # for what other versions of the packers have made of the same weights
FORMAT = 1  # of what we ask a file for; raised with a change of packed_file
IMPORT = re.compile(
    r"^[ \t]*(?:from|import)[ \t]+(?P<start>[\w.]+)(?:[ \t]+import[ \t]*(?P<names>\([^)]*|[^\n]*))?", re.MULTILINE
)
ARITHMETIC = "llmcore.weights."


@dataclass(frozen=True)
class Repack:
    """A weight that a kernel wants in a layout of its own.

    Attributes:
        pack: import string of the packer.
        layout: name and version of what it makes.
    """

    tensor: Tensor
    pack: str
    layout: tuple[str, int]

    @property
    def key(self) -> Key:
        """What is packed once: the tensor in a layout, whichever kernels want it."""
        return self.tensor.name, *self.layout

    @property
    def name(self) -> str:
        """In a file."""
        return f"{self.tensor.name} {self.layout[0]}:{self.layout[1]}"

    def make(self) -> Array:
        """The packed weight; the pages that it was made of are let go."""
        array = np.ascontiguousarray(resolve(self.pack)(self.tensor))
        self.tensor.forget()
        return array


def pack_all(repacks: Sequence[Repack], threads: int) -> Iterator[Array]:
    """Packs on several threads, in order; no more than a few results wait to be taken.

    Raises:
        CheckpointError: a file has changed meanwhile.
    """
    waiting: deque[Future[Array]] = deque()
    left = iter(repacks)
    executor = ThreadPoolExecutor(max(threads, 1))
    try:
        waiting.extend(executor.submit(repack.make) for repack in islice(left, 2 * threads))
        while waiting:
            array = waiting.popleft().result()
            waiting.extend(executor.submit(repack.make) for repack in islice(left, 1))
            yield array
    finally:
        executor.shutdown(cancel_futures=True)
    for file in {repack.tensor.mapping for repack in repacks}:
        if not file.unchanged():
            raise CheckpointError("was changed while it was being loaded", file=file.path, remedy="load it again")


@dataclass
class PackedCache:
    """Repacked weights on disk.

    Attributes:
        ledger: knows the folder, the content of files, and what is worth it.
    """

    ledger: Ledger

    @classmethod
    def at(cls, cache_dir: Path | None = None) -> PackedCache:
        """The packed weights in a cache directory."""
        return cls(Ledger.at(cache_dir))

    def arrays(self, repacks: Sequence[Repack], threads: int) -> list[Array] | None:
        """Every weight, mapped from a file that is made first where there is none; None where nothing can be kept."""
        key = self._key(repacks)
        if key is None or self.ledger.folder is None:
            return None
        path = self.ledger.folder / f"{key}.safetensors"
        found = _read(path, key, repacks) or self._write(path, key, repacks, threads)
        if found is not None:
            touch(path)
        return found

    def _key(self, repacks: Sequence[Repack]) -> str | None:
        """A name for all that the packed bytes depend on; None where that is not known, or not worth to be asked.

        Two digests: of the weights and their layouts, and of the packers.
        """
        if self.ledger.folder is None or sum(repack.tensor.nbytes for repack in repacks) < self.ledger.least:
            return None
        contents = {file: self.ledger.sha256(file) for file in {repack.tensor.mapping for repack in repacks}}
        packers = {pack: source_digest(pack.partition(":")[0]) for pack in {repack.pack for repack in repacks}}
        if None in contents.values() or None in packers.values():
            return None
        places = []
        for repack in repacks:
            tensor = repack.tensor
            place = (contents[tensor.mapping], tensor.offset, tensor.shape, tensor.format.name)
            places.append((repack.name, repack.pack, place))
        return f"{_digest([FORMAT, places])}-{_digest(sorted(packers.items()))}"

    def _write(self, path: Path, key: str, repacks: Sequence[Repack], threads: int) -> list[Array] | None:
        if not self.ledger.writable:
            return None
        _prune(path)
        names = [repack.name for repack in repacks]
        try:
            packed_file.write(path, key, names, zip(names, pack_all(repacks, threads), strict=True))
            return _read(path, key, repacks)
        except (OSError, packed_file.Unkeepable) as error:
            self.ledger.give_up(error)
            return None


def _read(path: Path, key: str, repacks: Sequence[Repack]) -> list[Array] | None:
    try:
        found = packed_file.read(path, key)
    except OSError:
        return None
    if found is None or found.keys() != {repack.name for repack in repacks}:
        return None
    return [found[repack.name] for repack in repacks]


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _prune(new: Path) -> None:
    """Removes what nobody has used for long, what writers that died have left, and what ``new`` supersedes."""
    folder, now = new.parent, time.time()
    superseded = f"{new.name.partition('-')[0]}-"
    for old in (*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob(".*.part")):
        soon = old.name.startswith(superseded) or old.suffix == ".part"
        with suppress(OSError):  # another process is just as far
            if old.stat().st_mtime < now - (SUPERSEDED_S if soon else UNUSED_S):
                old.unlink()


@cache
def source_digest(module: str) -> str | None:
    """A digest of a module's source and of what it imports from its own package and ours; None without a file.

    Of ours only the arithmetic of weight formats counts: nothing else decides what a packer makes.
    """
    rooms = (module.partition(".")[0] + ".", ARITHMETIC)
    digest, seen, waiting = hashlib.sha256(), set[str](), [module]
    while waiting:
        name = waiting.pop()
        file = None if name in seen else _file_of(name)
        if file is None:
            continue
        seen.add(name)
        data = file.read_bytes()
        digest.update(name.encode() + b"\0" + data)
        if file.suffix == ".py":
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            waiting += sorted(_imported(data.decode(errors="replace"), package, rooms))
    return digest.hexdigest() if module in seen else None


def _file_of(module: str) -> Path | None:
    try:
        return origin(module)
    except (ImportError, ValueError):  # no module: a function, perhaps
        return None


def _imported(source: str, package: str, rooms: tuple[str, ...]) -> set[str]:
    """What may be the modules of ``rooms`` that ``source``, which lies in ``package``, imports.

    A line of text may look like an import; to look for a module of another package could run its code.
    """
    found: set[str] = set()
    for start, names in IMPORT.findall(source):
        name = importlib.util.resolve_name(start, package) if start.startswith(".") and package else start
        if not f"{name}.".startswith(rooms):
            continue
        found.add(name)
        if (_file_of(name) or Path()).name == "__init__.py":
            found |= {f"{name}.{each}" for each in re.findall(r"\w+", names)}
    return found

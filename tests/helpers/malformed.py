"""A malformed checkpoint: the files to write, which of them is at fault, and a word that the message must have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Malformed:
    """One bad input.

    Attributes:
        name: the test's id.
        files: makes file name → content; the first is what is opened, unless it lies in a directory of several.
        says: a part of the error's message.
        culprit: the file that the message must name; the first if empty.
    """

    name: str
    files: Callable[[], Mapping[str, bytes]]
    says: str
    culprit: str = ""

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Writes the files; returns what to open (the file, or the folder of a Hugging Face model) and the culprit."""
        files = self.files()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        first = next(iter(files))
        opened = folder / first if len(files) == 1 else folder
        return opened, folder / (self.culprit or first)


def truncations(prefix: str, whole: bytes, make: Callable[[bytes], Mapping[str, bytes]]) -> Iterator[Malformed]:
    """``whole`` cut at 100 places spread from its first byte to its last but one."""
    for index in range(100):
        cut = index * (len(whole) - 1) // 99
        yield Malformed(f"{prefix}-cut-at-{cut}", lambda cut=cut: make(whole[:cut]), "")

"""Page ids of the KV cache: who holds which page. The bytes behind an id belong to the runner; only ids cross."""

from __future__ import annotations

from collections.abc import Iterable


class PagePool:
    """A fixed number of pages, handed out by id and counted by reference.

    A page may have several holders (a shared prefix); it is free again when the last one lets go.
    """

    def __init__(self, pages: int) -> None:
        """All ``pages`` are free; the lowest ids go first."""
        self.references = [0] * pages
        self._free = list(range(pages - 1, -1, -1))

    @property
    def free(self) -> int:
        """How many pages nobody holds."""
        return len(self._free)

    def can_allocate(self, count: int) -> bool:
        """Whether ``count`` pages could be had now."""
        return count <= len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Takes ``count`` pages; ask :meth:`can_allocate` first."""
        assert self.can_allocate(count), f"{count} pages wanted, {self.free} free"
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self.references[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """One more holder for each of ``pages``."""
        for page in pages:
            assert self.references[page] > 0, f"page {page} is free"
            self.references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One holder fewer for each of ``pages``."""
        for page in pages:
            assert self.references[page] > 0, f"page {page} was released twice"
            self.references[page] -= 1
            if self.references[page] == 0:
                self._free.append(page)

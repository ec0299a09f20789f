"""Page ids of the KV cache: who holds which page. The bytes behind an id belong to the runner; only ids cross."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from llmcore.cache.prefix import PrefixIndex
from llmcore.errors import InternalError


class PagePool:
    """A fixed number of pages, handed out by id and counted by reference.

    A page may have several holders (a shared prefix); it is free again when the last one lets go. A free page whose
    content ``prefixes`` knows is *idle*: it can still be shared, and is handed out anew only after all that know
    nothing, the one unused for longest first.
    """

    def __init__(self, pages: int, prefixes: PrefixIndex | None = None) -> None:
        """All ``pages`` are free; the lowest ids go first. Without ``prefixes`` a free page's content is lost."""
        self.references = [0] * pages
        self.prefixes = prefixes
        self._free = list(range(pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # as their last holders let go

    @property
    def free(self) -> int:
        """How many pages nobody holds."""
        return len(self._free) + len(self._idle)

    def can_allocate(self, count: int) -> bool:
        """Whether ``count`` pages could be had now."""
        return count <= len(self._free) + len(self._idle)

    def allocate(self, count: int) -> list[int]:
        """Takes ``count`` pages; ask :meth:`can_allocate` first."""
        assert self.can_allocate(count), f"{count} pages wanted, {self.free} free"
        pages = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for page in pages:
            self.references[page] = 1
        return pages

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        assert self.prefixes is not None
        self.prefixes.forget(page)
        return page

    def share(self, pages: Iterable[int]) -> None:
        """One more holder for each of ``pages``, which are held already, or idle."""
        for page in pages:
            if page in self._idle:
                del self._idle[page]
            else:
                assert self.references[page] > 0, f"page {page} is free"
            self.references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One holder fewer for each of ``pages``; of those that become idle, the first goes first."""
        for page in pages:
            assert self.references[page] > 0, f"page {page} was released twice"
            self.references[page] -= 1
            if self.references[page] == 0:
                if self.prefixes is not None and page in self.prefixes:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def forget(self, pages: Iterable[int]) -> None:
        """Nobody more finds what ``pages`` hold; who holds them keeps them."""
        if self.prefixes is not None:
            for page in pages:
                self.prefixes.forget(page)
                if page in self._idle:
                    del self._idle[page]
                    self._free.append(page)

    def verify(self, holders: Iterable[Iterable[int]]) -> None:
        """Checks all pages, given what each holder has.

        Raises:
            InternalError: a page whose references, or whose place among free and idle ones, are not as they must be.
        """
        held = Counter(page for pages in holders for page in pages)
        free, known = Counter(self._free), self.prefixes
        for page, references in enumerate(self.references):
            idle = page in self._idle
            if held[page] != references:
                raise InternalError(f"page {page} has {held[page]} holders, but counts {references}")
            if free[page] + idle + (references > 0) != 1:
                raise InternalError(
                    f"page {page} must be free, idle or held: it is {free[page]} times free, "
                    f"{'idle' if idle else 'not idle'}, and has {references} holders"
                )
            if known is not None and not references and (page in known) != idle:
                raise InternalError(f"page {page} is {'idle' if idle else 'free'}, but its content says otherwise")
        stray = next((page for page in (*held, *free, *self._idle) if not 0 <= page < len(self.references)), None)
        stray = known.mismatch() if stray is None and known is not None else stray
        if stray is not None:
            raise InternalError(f"page {stray} is not one of the pool's, or is known by another page's content")

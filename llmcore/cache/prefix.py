"""What the full pages of the KV cache hold: sequences that begin alike find the pages that another has computed.

A page's digest covers its own tokens and, through its parent's digest, all tokens before them: equal digests mean equal
keys and values. A salt stands before the first page: whoever does not know it finds nothing that was computed under it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

DIGEST_BYTES = 32  # nobody finds two prefixes of one digest, whatever they send
SALTED = b"llmcore salt"  # no salt has the digest of a page


class PrefixIndex:
    """Digests of full, computed pages and the pages that hold them; who holds a page is the pool's affair.

    Attributes:
        queried, hit: tokens of admitted prompts, and those of them that were found.
    """

    def __init__(self, page_size: int) -> None:
        """Args: ``page_size`` in tokens."""
        self.page_size = page_size
        self.queried = 0
        self.hit = 0
        self._pages: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}

    def __contains__(self, page: int) -> bool:
        """Whether ``page`` can be found."""
        return page in self._digests

    def extend(self, digests: list[bytes], tokens: Sequence[int], count: int, salt: str = "") -> None:
        """Appends to ``digests``, those of the first pages of ``tokens``, until there are ``count``."""
        size = self.page_size
        for i in range(len(digests), count):
            made = blake2b(digests[-1] if digests else root(salt), digest_size=DIGEST_BYTES)
            made.update(array("q", tokens[i * size : (i + 1) * size]))
            digests.append(made.digest())

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """The pages of the longest known beginning of ``digests``."""
        found = []
        for digest in digests:
            page = self._pages.get(digest)
            if page is None:
                break
            found.append(page)
        return found

    def enter(self, digest: bytes, page: int) -> None:
        """Makes ``page``, which must be computed, findable; nothing happens if another page holds the same."""
        if digest not in self._pages:
            assert page not in self._digests, f"page {page} holds two prefixes"
            self._pages[digest] = page
            self._digests[page] = digest

    def forget(self, page: int) -> None:
        """``page`` is found no more; nothing happens if it was not."""
        digest = self._digests.pop(page, None)
        if digest is not None:
            del self._pages[digest]

    def mismatch(self) -> int | None:
        """A page whose two entries disagree, or None: a bug, if there is one."""
        for digest, page in self._pages.items():
            if self._digests.get(page) != digest:
                return page
        return next((page for page, digest in self._digests.items() if self._pages.get(digest) != page), None)


def root(salt: str) -> bytes:
    """What comes before the first page; nothing without a salt."""
    data = salt.encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=DIGEST_BYTES, person=SALTED).digest() if data else b""

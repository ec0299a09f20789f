"""How large steps and the KV cache are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmcore.graph.inputs import Limits


@dataclass(frozen=True)
class Sizes:
    """What the runner is built for.

    Attributes:
        tokens, seqs, rows: the largest step.
        context: tokens of the longest sequence.
        page_size, pages: the KV cache; 0 pages: as many as ``seqs`` full contexts need within ``kv_budget`` bytes, and
            enough for one in any case.
        buckets: step sizes in tokens that get a program of their own; ``tokens`` is always one.
    """

    tokens: int
    seqs: int
    rows: int
    context: int
    page_size: int
    pages: int
    buckets: tuple[int, ...] = ()
    kv_budget: int = 2 << 30  # of address space: memory is taken as pages are used, or by a preallocation
    device_share: float = 0.9  # of what an accelerator has left

    def with_pages(self, page_bytes: int) -> Sizes:
        """The same with ``pages`` decided, where one page of all layers takes ``page_bytes``."""
        blocks = -(-self.context // self.page_size)
        affordable = self.kv_budget // page_bytes
        return self if self.pages else replace(self, pages=max(min(blocks * self.seqs, affordable), blocks))

    @property
    def limits(self) -> Limits:
        """The bounds of a step."""
        return Limits(self.tokens, self.seqs, self.rows, -(-self.context // self.page_size))


def recorded_sizes(seqs: int) -> list[int]:
    """The numbers of sequences whose decode step is recorded: powers of two up to 16, then steps of 16."""
    return sorted({*(size for size in (1, 2, 4, 8, 16) if size < seqs), *range(32, seqs, 16), seqs})

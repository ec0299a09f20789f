"""The runner of an accelerator: decode steps are recorded, inputs sent; the device computes while the host goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmcore.dims import Bounds
from llmcore.engine.batch import Work
from llmcore.engine.runner import Runner
from llmcore.engine.sizes import recorded_sizes

HEADS = ("ids", "logits")  # whose decode steps are recorded


@dataclass
class AcceleratedRunner(Runner):
    """A runner whose memory is an accelerator's.

    A decode step, one new token of each sequence, is filled up to one of the sizes in :attr:`recorded` with sequences
    of one token in a page that belongs to nobody, the last one: no kernel knows of padding.
    """

    def __post_init__(self) -> None:
        """Sizes the KV cache last, by what the largest step leaves of the memory, and records all decode steps."""
        self.recorded = recorded_sizes(self.sizes.seqs) if self.place.device.captures else []
        super().__post_init__()

    def _every_bounds(self) -> list[Bounds]:
        return [*super()._every_bounds(), *(self._bounds(size, one_each=True) for size in self.recorded)]

    def _size_cache(self) -> None:
        """Pages for the largest step alone: what is left for more is known when all else is there."""
        self._spare = -(-self.sizes.tokens // self.sizes.page_size)
        self._allocate_pages(self._spare + 1)

    def _finish(self) -> None:
        device = self.place.device
        self._reader = device.reader(self.outputs["ids"])
        for head in HEADS:
            self.run(self._largest(), head)
            self._record(head, self.recorded[-1:])
        free = device.free_memory()
        self.programs.clear()  # they hold the pages
        self.states.clear()
        budget = self.sizes.kv_budget if free is None else int(free * self.sizes.device_share)
        self.sizes = replace(self.sizes, kv_budget=budget - self.page_bytes).with_pages(self.page_bytes)
        self._spare = self.sizes.pages
        self._allocate_pages(self._spare + 1)
        for head in HEADS:
            self._record(head, self.recorded)

    def _largest(self) -> list[Work]:
        """The largest step: as many tokens as it may have, at the end of the context, and all rows.

        Of several sequences, if it has more tokens than one may have. All of them read and write the first page, whose
        content is nobody's.
        """
        size, whole = self.sizes, self.sizes.context
        most = min(size.tokens, whole * size.seqs)
        pages = [0] * size.limits.blocks
        work: list[Work] = []
        rows = size.rows
        for start in range(0, most, whole):
            count = min(whole, most - start)
            work.append(([0] * count, whole - count, pages, range(count)[-rows:] if rows else ()))
            rows -= min(rows, count)
        return work

    def _record(self, head: str, counts: Sequence[int]) -> None:
        """Runs decode steps of ``counts`` sequences once, over the page that belongs to nobody."""
        for count in counts:
            self._run([self._nobody()] * count, head)

    def _nobody(self) -> Work:
        """The sequence that fills a step up."""
        return ((0,), 0, (self._spare,), (0,))

    def run(self, batch: Sequence[Work], head: str = "logits", *, follows: Any = None) -> Any:
        """As on the host.

        Args:
            follows: an array of the device that has every sequence's one token, int32 ``[sequences]`` or longer:
                chosen by the step before, and not seen by the host. Those in ``batch`` do not count then.
        """
        rows = self._run(batch, head, follows)
        return self.outputs[head][:rows]

    def greedy(self, batch: Sequence[Work]) -> list[int]:
        """As on the host."""
        return self.start(batch)()

    def start(self, batch: Sequence[Work], *, follows: Any = None) -> Callable[[], list[int]]:
        """Sets out for the most probable next token of every row of ``batch``; what it returns waits for them.

        The device computes meanwhile, and two steps may be under way. ``follows`` as for :meth:`run`.
        """
        arriving = self._reader(self._run(batch, "ids", follows))
        return lambda: arriving().tolist()

    def _run(self, batch: Sequence[Work], head: str, follows: Any = None) -> int:
        sequences = len(batch)
        one_each = (
            head in HEADS and bool(self.recorded) and all(len(ids) == 1 == len(rows) for ids, _, _, rows in batch)
        )
        if one_each:
            batch = [*batch, *[self._nobody()] * (self._bucket(sequences, one_each=True) - sequences)]
        self.inputs.settle()
        tokens, rows = self._writer.fill(batch)
        self.inputs.set_sizes(tokens, len(batch), rows)
        self.inputs.send()
        if follows is not None:
            self._follow(follows, sequences)
        self.program(head, tokens, one_each=one_each).run()
        return sequences if one_each else rows

    def _follow(self, tokens: Any, count: int) -> None:
        """Brings tokens of the last step to the inputs of the next; a row without one, -1, has none to be looked up."""
        self.inputs.there["token_ids"][:count].copy_(tokens[:count].clamp(min=0))

    def release(self) -> None:
        """Lets go of pages, weights, outputs and programs."""
        for held in (self.programs, self.states, self.outputs, self.weights.made, self.weights.mapped):
            held.clear()
        self.compiler.memory.constants.clear()

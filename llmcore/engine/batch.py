"""What a step computes, and how it is written into the inputs that every program reads."""

from __future__ import annotations

from collections.abc import Sequence

from llmcore.graph.inputs import StepInputs

Work = tuple[Sequence[int], int, Sequence[int], Sequence[int]]
"""New tokens of one sequence in a step: ``(token_ids, start, pages, rows)``.

``start`` is the position of the first token. ``pages`` are the sequence's, and hold ``start + len(token_ids)`` tokens
or more. ``rows`` says which of the tokens, counted from the first, want logits. Bare, as one is made in every step.
"""


class BatchWriter:
    """Writes ragged batches into the inputs of a step."""

    def __init__(self, inputs: StepInputs, page_size: int, seqs: int) -> None:
        """``inputs`` are those of steps with up to ``seqs`` sequences."""
        self._inputs = inputs
        self._page_size = page_size
        self._words = {name: array.data for name, array in inputs.arrays.items()}
        self._tables: list[list[int]] = [[] for _ in range(seqs)]  # what block_tables holds

    def fill(self, batch: Sequence[Work]) -> tuple[int, int]:
        """Writes the inputs of a step; returns its number of tokens and of wanted rows.

        Word by word: after a step the caches hold weights alone, and for the few words of a decode step one call of
        numpy has to bring more of its code back than all of this is.
        """
        words, page_size = self._words, self._page_size
        token_ids, positions, slots, rows = words["token_ids"], words["positions"], words["slots"], words["rows"]
        query_starts, query_lens, kv_lens = words["query_starts"], words["query_lens"], words["kv_lens"]
        token = row = 0
        for s, (new_ids, start, pages, wanted) in enumerate(batch):
            first, position = token, start
            for token_id in new_ids:
                token_ids[token] = token_id
                positions[token] = position
                slots[token] = pages[position // page_size] * page_size + position % page_size
                token += 1
                position += 1
            query_starts[s] = first
            query_lens[s] = token - first
            kv_lens[s] = position
            for offset in wanted:
                rows[row] = first + offset
                row += 1
            if self._tables[s] != pages:  # most steps add no page
                self._inputs.rare = True
                self._inputs.arrays["block_tables"][s, : len(pages)] = pages
                self._tables[s] = list(pages)  # last: should an interrupt come, all of it is written again
        return token, row

"""How many threads torch computes with."""

from __future__ import annotations


def use(threads: int) -> None:
    """Makes torch's operators use ``threads`` threads, in the whole process: torch has one pool only."""
    import torch

    torch.set_num_threads(threads)

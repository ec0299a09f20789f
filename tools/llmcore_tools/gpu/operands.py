"""Tensors that a kernel can be called with for measuring: of the right sizes, with indices that mean something."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from llmcore import ops
from llmcore_tools.gpu.workload import CONTEXT, PAGE_SIZE, Argument, Call

MODERATE = 0x28, 0x34  # bytes of which any float16, bfloat16 or float32 is a small number, and integers are no zeros
Sizes = Mapping[str, tuple[int, ...]]


def operands(call: Call, device: str, seed: int = 0) -> list[torch.Tensor | None]:
    """One tensor for each argument of ``call``; absent ones are None.

    Sequences have the whole context in the cache, each in pages of its own, their new tokens at the end.
    """
    generator = torch.Generator(device).manual_seed(seed)
    sizes = {argument.name: argument.shape for argument in call.arguments if argument is not None}
    params = ops.get(call.kernel.op).params
    return [
        None
        if argument is None
        else indices(argument, sizes).to(device)
        if param.type == "i32" and param.role == "input"
        else _numbers(argument, generator)
        for param, argument in zip(params, call.arguments, strict=True)
    ]


def _numbers(argument: Argument, generator: torch.Generator) -> torch.Tensor:
    """Normal numbers; probabilities and what is like them, between 0 and 1; packed weights and pages, bytes."""
    made = torch.empty(argument.shape, dtype=getattr(torch, argument.dtype), device=generator.device)
    if not made.is_floating_point():
        made.view(torch.uint8).random_(*MODERATE, generator=generator)
    elif argument.name == "probs":
        made.exponential_(generator=generator).div_(made.sum(-1, keepdim=True))
    elif argument.name in ("temperature", "p", "u"):
        made.uniform_(0.1, 0.9, generator=generator)
    else:
        made.normal_(generator=generator)
    return made


def indices(argument: Argument, sizes: Sizes) -> torch.Tensor:
    """What an argument of the type ``i32`` may be: tokens, rows, positions, slots, what is known of sequences."""
    count = argument.shape[0]
    each = torch.arange(count)
    tokens = sizes.get("q", sizes.get("x", (count,)))[0]
    match argument.name:
        case "ids":
            found = each * 997 % sizes["weight"][0]
        case "rows":
            found = each * (tokens // count)
        case "positions":
            found = each % CONTEXT
        case "slots":  # the ends of sequences that lie apart, or one sequence
            slots = sizes["kv"][0] * PAGE_SIZE
            found = each * (slots // count)
        case "query_starts":
            found = each * (tokens // count)
        case "query_lens":
            found = torch.full((count,), tokens // count)
        case "kv_lens":
            found = torch.full((count,), CONTEXT)
        case "block_tables":
            found = torch.arange(count * argument.shape[1]).view(argument.shape)
        case "k":
            found = torch.full((count,), 40)
        case _:
            raise LookupError(f"no rule for the indices {argument.name}")
    return found.to(torch.int32)

"""Stage ``models``: tiny models of every family, in every type of activations, against transformers on the host.

The reference is transformers in float32 with our weights, dequantized. Bounds are root mean squares over the spread of
the logits: one for each type, as wide as its rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch

from llmcore.device import Place
from llmcore.device.accelerator import Accelerator
from llmcore.engine.batch import Work
from llmcore.weights.checkpoint import Checkpoint
from llmcore_tools.gpu.check_context import Context, Finding
from llmcore_tools.gpu.check_random import Loaded, distinct, load, sizes_for
from llmcore_tools.gpu.check_shapes import TINY

Array = np.ndarray[Any, Any]
BOUNDS = {"float32": 1e-4, "float16": 0.006, "bfloat16": 0.05}  # root mean square of errors over that of logits
FORMATS = ("F32", "BF16", "Q8_0", "Q4_0")
KINDS = sorted(product(FORMATS, BOUNDS), key=lambda kind: kind != ("BF16", "bfloat16"))  # what most models are, first
TOKENS = 40  # of the sequence whose logits are compared: several pages
CHUNKS: Sequence[int | None] = (None, 5, 1)  # all at once, in pieces, and token by token: recorded decode steps
PROMPTS: Sequence[list[int]] = (
    [5, 9, 20, 31],
    [40],
    [7, 7, 8, 100, 3, 2, 19, 64, 5, 81, 11, 12, 9, 9, 4, 70, 71, 72],
    [200, 4, 6],
)
ANSWER = 8
NEEDS_S = 2.0


def run(context: Context) -> None:
    """Every family × type × format; in a rehearsal one model of one layer."""
    cases = [(name, form, dtype) for form, dtype in KINDS for name in TINY]
    for name, form, dtype in cases[-1:] if context.rehearse else cases:
        config = {**TINY[name], "num_hidden_layers": 1} if context.rehearse else TINY[name]
        checkpoint = distinct(config, form)
        what = f"{name}; {form}, {dtype}"
        context.attempt(what, partial(compare, context, what, checkpoint, dtype), NEEDS_S)


def compare(context: Context, what: str, checkpoint: Checkpoint, dtype: str) -> None:
    sizes = sizes_for(tokens=TOKENS, seqs=4, rows=TOKENS, context=64, buckets=(8,))
    prompts, tokens, chunks = PROMPTS, ANSWER, CHUNKS
    if context.rehearse:
        sizes = sizes_for(tokens=8, seqs=2, rows=8, context=16, buckets=())
        prompts, tokens, chunks = ([5, 9], [40]), 2, (None, 3)
    model = load(checkpoint, Place(context.device, dtype), sizes, ops=context.ops)
    reference = transformers_model(checkpoint)
    vocab = checkpoint.config["vocab_size"]
    ids = np.random.default_rng(1).integers(0, vocab, min(TOKENS, sizes.tokens)).tolist()
    wanted = logits_of(reference, ids)
    bound = BOUNDS[dtype]
    errors = {f"in chunks of {c}" if c else "prefill": relative(model.logits(ids, c), wanted) for c in chunks}
    verdicts = {name: error <= bound for name, error in errors.items()}
    complaints = [name for name, fits in verdicts.items() if not fits]
    complaints += greedy_complaints(model, reference, prompts, tokens, bound, exact=dtype == "float32")
    complaints += _steady_step(model, context.device)
    values = {"error": max(errors.values()), "bound": bound}
    context.add(Finding(what, "wrong" if complaints else "holds", values, "; ".join(complaints)))


def transformers_model(checkpoint: Checkpoint) -> Any:
    """transformers' model with our weights: float32, eager attention, on the host."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**checkpoint.config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    weights = {name: torch.from_numpy(tensor.dequantize()) for name, tensor in checkpoint.tensors.items()}
    missing, surplus = model.load_state_dict(weights, strict=False)
    assert not surplus and set(missing) <= {"lm_head.weight"}, f"transformers misses {missing}, has no {surplus}"
    return model.eval()


def logits_of(model: Any, ids: Sequence[int]) -> Array:
    """transformers' logits, float32 ``[tokens, vocab]``."""
    with torch.inference_mode():
        found: Array = model(torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()
    return found


def relative(found: Array, wanted: Array) -> float:
    """The root mean square of errors over the spread of what is wanted; infinite where something is no number."""
    error = float(np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std())
    return error if np.isfinite(error) else float("inf")


def greedy_complaints(
    model: Loaded, reference: Any, prompts: Sequence[Sequence[int]], tokens: int, bound: float, *, exact: bool
) -> list[str]:
    """What is wrong with greedy answers of prompts alone and together.

    Each token must be the reference's best after the tokens before it, or as good within the type's rounding: two
    logits that are that close may change places. In float32 a batch must not change answers either.
    """
    together = model.generate(prompts, tokens)
    alone = [model.generate([prompt], tokens)[0] for prompt in prompts]
    found = ["answers depend on the batch"] if exact and together != alone else []
    for name, answers in (("together", together), ("alone", alone)):
        worst = max(_loss(reference, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True))
        if worst > 6 * bound:  # each of two logits may be off by three root mean squares
            found.append(f"greedy answers {name}: a token is {worst:.2g} below the best")
    return found


def _loss(reference: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """How far the worst token of an answer is below the reference's best one, over the spread of logits."""
    logits = logits_of(reference, [*prompt, *answer])[len(prompt) - 1 : -1]
    chosen = logits[np.arange(len(answer)), answer]
    return float((logits.max(1) - chosen).max() / logits.std())


def _steady_step(model: Loaded, device: Accelerator) -> list[str]:
    """Whether a decode step makes the host wait for the device somewhere on its way: it must not."""
    work: list[Work] = [([0], 0, [0], (0,))]
    model.runner.start(work)()
    try:
        with forbidden_syncs(device):
            arriving = model.runner.start(work, follows=model.runner.outputs["ids"])
    except RuntimeError as error:
        return [f"a decode step waits for the device: {error}"]
    arriving()
    return []


@contextmanager
def forbidden_syncs(device: Accelerator) -> Iterator[None]:
    """Torch raises where a call of its own waits for the device meanwhile."""
    if not device.asynchronous:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")

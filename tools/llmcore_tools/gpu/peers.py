"""Stage ``peers``: transformers, eager and compiled, beside llmcore on one model, in turns on one machine.

The model is made here: random weights of a published shape, written by transformers and read by us, so that both
compute the same. Answers are greedy and of a fixed length, with end tokens ignored. Logits are compared, not tokens:
both round to bfloat16 at other places, so the measure is how far each is from float32.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import numpy as np
import torch

from llmcore.device import Place
from llmcore.engine.sizes import Sizes
from llmcore.weights.checkpoint import open_checkpoint
from llmcore_tools.bench.measure import Ratio, Series, in_turns
from llmcore_tools.gpu.check_context import Context, Finding, Value, Verdict
from llmcore_tools.gpu.check_models import relative
from llmcore_tools.gpu.check_random import Loaded, load, sizes_for
from llmcore_tools.gpu.check_shapes import LLAMA_1B, LLAMA_8B, MODELS, TOY
from llmcore_tools.gpu.check_timing import settled

OURS, EAGER, COMPILED = "llmcore", "transformers, eager", "transformers, static cache, compiled"
GOALS = {(COMPILED, 1): 1.5, (COMPILED, 16): 3.0, (EAGER, 1): 6.0, (EAGER, 16): 6.0}  # times as fast as they
MARGIN = 1.5  # how much further than theirs our logits may be from float32
NEEDS_S = {LLAMA_1B: 40.0, LLAMA_8B: 90.0}
MEMORY = Path("/dev/shm")

Ids = list[list[int]]
Answer = Callable[[Ids, int], object]


@dataclass(frozen=True)
class Asked:
    """Prompts of ``prompt`` tokens, answers of ``answer``, logits of ``scored`` tokens; ``samples`` of each figure."""

    prompt: int = 256
    answer: int = 128
    scored: int = 256
    samples: int = 3
    batches: tuple[int, ...] = (1, 16)


def run(context: Context) -> None:
    """The small model first, the large one if time is left."""
    if context.rehearse:
        asked = Asked(prompt=4, answer=2, scored=6, samples=1, batches=(1, 2))
        context.attempt("toy", partial(compare, context, "toy", TOY, asked))
        return
    for name, needs in NEEDS_S.items():
        context.attempt(name, partial(compare, context, name, MODELS[name], Asked()), needs)


def compare(context: Context, name: str, config: Mapping[str, Any], asked: Asked) -> None:
    """Makes the model, loads it twice, compares logits, then speed."""
    device = context.device
    theirs = made(config, device.device)
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], (max(asked.batches), asked.prompt)).tolist()
    with saved(theirs) as folder, open_checkpoint(folder) as checkpoint:
        ours = load(checkpoint, Place(device, "bfloat16"), sizes_of(asked), ops=context.ops, batches=asked.batches)
        compare_logits(context, name, theirs, ours, asked.scored, config["vocab_size"])
        for batch in asked.batches:
            what = f"{name}, batch {batch}"
            tasks: dict[str, Answer] = {OURS: ours.generate, **ways_of(theirs, device.device)}
            needs = 0.0 if context.rehearse else 10.0
            context.attempt(what, partial(compare_speed, context, what, tasks, ids[:batch], asked), needs)
    if not context.rehearse and not hasattr(theirs, "_compiled_call"):
        context.add(Finding(f"{name}, compiling", "not run", note="generate did not compile transformers' model"))


def sizes_of(asked: Asked) -> Sizes:
    """An engine that takes all prompts in one step."""
    most = max(asked.batches)
    return sizes_for(
        tokens=max(asked.prompt * most, asked.scored),
        seqs=most,
        rows=max(asked.scored, most),
        context=max(asked.prompt + asked.answer, asked.scored) + 16,
        buckets=(),
    )


def made(config: Mapping[str, Any], device: torch.device) -> Any:
    """transformers' model of random bfloat16 weights, on the device from the start."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    return model.to(device).eval()


@contextmanager
def saved(model: Any) -> Iterator[Path]:
    """The model's folder, in memory where there is room for it."""
    nbytes = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 1.2 * nbytes
    with TemporaryDirectory(prefix="llmcore-gpu-check-", dir=MEMORY if roomy else gettempdir()) as folder:
        model.save_pretrained(folder)
        yield Path(folder)


def compare_logits(context: Context, name: str, theirs: Any, ours: Loaded, scored: int, vocab: int) -> None:
    """Both against transformers in float32 on the same weights; then with each other."""
    ids = np.random.default_rng(2).integers(0, vocab, scored).tolist()
    found, rounded = ours.logits(ids), logits_of(theirs, ids)
    exact = logits_of(deepcopy(theirs).float(), ids)
    error, their_error = relative(found, exact), relative(rounded, exact)
    values: dict[str, Value] = {
        "our error": error,
        "their error": their_error,
        "largest difference": float(np.abs(found - rounded).max()),
        "rms difference": float(np.sqrt(np.mean((found - rounded) ** 2))),
        "same best token": f"{float(np.mean(found.argmax(1) == rounded.argmax(1))):.1%}",
    }
    right = error <= MARGIN * their_error
    context.add(Finding(f"{name}, logits of {scored} tokens", "holds" if right else "wrong", values))


def logits_of(model: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    """transformers' logits, float32 ``[tokens, vocab]``."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    found: np.ndarray[Any, Any] = logits.float().cpu().numpy()
    return found


def ways_of(model: Any, device: torch.device) -> dict[str, Answer]:
    """transformers' ways of generating: as it comes, and with a static cache, where ``generate`` compiles on a GPU."""

    def generate(ids: Ids, tokens: int, **how: Any) -> object:
        prompts = torch.tensor(ids, device=device)
        with torch.inference_mode():
            return model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                **how,
            )

    return {EAGER: generate, COMPILED: partial(generate, cache_implementation="static")}


def compare_speed(context: Context, what: str, tasks: Mapping[str, Answer], ids: Ids, asked: Asked) -> None:
    """Time to the first token, and tokens per second behind it, in turns."""
    device, batch = context.device, len(ids)

    def taken(answer: Answer, tokens: int) -> float:
        start = settled(device)
        answer(ids, tokens)
        return settled(device) - start

    usable: dict[str, Answer] = {}
    rates: dict[str, Series] = {}
    notes: dict[str, str] = {}
    for name, answer in tasks.items():
        started = time.perf_counter()
        try:
            for tokens in (asked.answer, 1) * 2:  # compiles, records, grows pools: not what is compared
                taken(answer, tokens)
        except Exception as error:
            if answer is tasks[OURS]:
                raise
            context.add(Finding(f"{what}, {name}", "not run", note=f"{type(error).__name__}: {error}"[:500]))
            continue
        usable[name], notes[name] = answer, f"first calls took {time.perf_counter() - started:.0f} s"
    first = in_turns({name: partial(taken, answer, 1) for name, answer in usable.items()}, asked.samples)
    whole = in_turns({name: partial(taken, answer, asked.answer) for name, answer in usable.items()}, asked.samples)
    for name in usable:
        seconds = zip(first[name], whole[name], strict=True)
        rates[name] = Series(tuple(batch * (asked.answer - 1) / max(both - one, 1e-9) for one, both in seconds))
    for name, rate in rates.items():
        values: dict[str, Value] = {"tok/s": rate.median, "first token ms": 1e3 * Series(tuple(first[name])).median}
        verdict: Verdict = ""
        if name != OURS:
            ratio, goal = Ratio(rates[OURS], rate), GOALS.get((name, batch), 0.0)
            values |= {"times as fast": ratio.value, "goal": goal, "pairs": str(ratio)}
            verdict = context.judged(ratio.value, goal)
        context.add(Finding(f"{what}, {name}", verdict, values, notes[name]))

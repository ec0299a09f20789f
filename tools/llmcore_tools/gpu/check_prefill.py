"""Stage ``prefill``: a prompt of 4,096 tokens in one step, against the matrix units' speed.

Operations are two for each weight that a token meets and, of attention, those of the pairs that look at each other;
the classifier meets the last token alone. The peak is torch's own product of large matrices, measured in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from llmcore.device import Place
from llmcore.model_spec import ModelSpec
from llmcore_tools.gpu.check_context import Context, Finding
from llmcore_tools.gpu.check_random import alike, is_matrix, load, shapes_of, sizes_for
from llmcore_tools.gpu.check_shapes import LLAMA_1B, LLAMA_8B, MODELS, QWEN3_8B, QWEN25_7B, TOY
from llmcore_tools.gpu.check_timing import matrix_peak, seconds

TOKENS, TOY_TOKENS = 4096, 16
GOAL = 0.55
ORDER = (LLAMA_8B, LLAMA_1B, QWEN3_8B, QWEN25_7B)
NEEDS_S = 6.0


def run(context: Context) -> None:
    """Every shape with bfloat16 weights."""
    peak = matrix_peak(context)
    models = {"toy": TOY} if context.rehearse else {name: MODELS[name] for name in ORDER}
    for name, config in models.items():
        context.attempt(name, partial(measure, context, name, config, peak), NEEDS_S)


def measure(context: Context, name: str, config: Mapping[str, Any], peak: float) -> None:
    """Times one step that computes the whole prompt, host included."""
    tokens = TOY_TOKENS if context.rehearse else TOKENS
    sizes = sizes_for(tokens=tokens, seqs=1, rows=1, context=tokens + 16, buckets=())
    model = load(alike(config, "BF16"), Place(context.device, "bfloat16"), sizes, shared=True, ops=context.ops)
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], tokens).tolist()
    work = [(ids, 0, range(-(-tokens // sizes.page_size)), (tokens - 1,))]
    repeats = 1 if context.rehearse else 5
    taken = seconds(context.device, lambda: model.runner.run(work, "ids"), repeats=repeats, warm=repeats // 2).median
    wanted = operations(model.spec, shapes_of(config), tokens)
    share = wanted / taken / 1e12 / peak
    values = {
        "tok/s": tokens / taken,
        "ms": 1e3 * taken,
        "Tera/s": wanted / taken / 1e12,
        "peak Tera/s": peak,
        "% of peak": 100 * share,
        "goal %": 100 * GOAL,
    }
    context.add(Finding(f"{name}, BF16, {tokens} tokens", context.judged(share, GOAL), values))


def operations(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]], tokens: int) -> float:
    """Multiplications and additions of a prompt's step whose last token's logits are wanted."""
    blocks = sum(math.prod(shape) for name, shape in shapes.items() if is_matrix(shape) and ".layers." in name)
    pairs = tokens * (tokens + 1) // 2
    attention = 4 * spec.layers * spec.heads * spec.head_dim * pairs
    return 2.0 * blocks * tokens + attention + 2.0 * spec.vocab_size * spec.hidden_size

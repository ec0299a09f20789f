"""Is the model right? Two runs of it compared block by block over the same tokens, by what users will notice.

A run is a *trace*: the hidden state after the embedding and after each block, ``[tokens, hidden]``, by module path, and
the logits, ``[tokens, vocab]``. :meth:`llmcore.llm.LLM.trace` makes ours, :func:`transformers_trace` transformers'.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.errors import LlmcoreError

if TYPE_CHECKING:
    from llmcore.llm import LLM

Array = np.ndarray[Any, Any]
Trace = Mapping[str, Array]


@dataclass(frozen=True)
class Difference:
    """How far one tensor of two traces is apart; ``scale`` is the reference's root mean square."""

    name: str
    max_error: float
    mean_error: float
    scale: float


@dataclass(frozen=True)
class Report:
    """What :func:`compare` found.

    Attributes:
        layers: every hidden state in order, then the logits.
        first_divergent: the first of them whose greatest error exceeds ``tolerance`` times its scale, or None.
        top1_agreement: share of positions with the same most probable token.
        perplexity, reference_perplexity: of the given tokens, from the second position on.
    """

    tokens: int
    tolerance: float
    layers: tuple[Difference, ...]
    first_divergent: str | None
    top1_agreement: float
    perplexity: float
    reference_perplexity: float

    @property
    def logits(self) -> Difference:
        """The difference of the logits."""
        return self.layers[-1]

    @property
    def perplexity_change(self) -> float:
        """Relative: 0.01 is one per cent more than the reference's."""
        return self.perplexity / self.reference_perplexity - 1


def compare(trace: Trace, reference: Trace, token_ids: Sequence[int], tolerance: float = 1e-3) -> Report:
    """Compares two traces over ``token_ids``.

    Raises:
        LlmcoreError: the two are not of the same model: they differ in names or shapes.
    """
    if trace.keys() != reference.keys() or any(trace[k].shape != reference[k].shape for k in trace):
        raise LlmcoreError(
            "the two runs are not of the same model: their blocks differ in number or size",
            remedy="verify a model against itself in another backend, or against transformers",
        )
    names = [name for name in trace if name != "logits"] + ["logits"]
    layers = tuple(_difference(name, trace[name], reference[name]) for name in names)
    divergent = (d.name for d in layers if not d.max_error <= tolerance * max(d.scale, 1e-30))  # NaN diverges
    same = trace["logits"].argmax(-1) == reference["logits"].argmax(-1)
    return Report(
        len(token_ids),
        tolerance,
        layers,
        next(divergent, None),
        float(same.mean()),
        perplexity(trace["logits"], token_ids),
        perplexity(reference["logits"], token_ids),
    )


def _difference(name: str, found: Array, wanted: Array) -> Difference:
    error = np.abs(found.astype(np.float64) - wanted)
    scale = float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64))))
    return Difference(name, float(error.max()), float(error.mean()), scale)


def perplexity(logits: Array, token_ids: Sequence[int]) -> float:
    """``exp`` of the mean negative log-likelihood of each token given those before it; NaN for a single token."""
    return float(np.exp(surprises(logits, token_ids).mean())) if len(token_ids) > 1 else float("nan")


def surprises(logits: Array, token_ids: Sequence[int]) -> Array:
    """Negative log-likelihood of each token but the first, given those before it: float64 ``[tokens - 1]``."""
    found = np.empty(len(token_ids) - 1)
    for i, token in enumerate(token_ids[1:]):  # a row at a time: vocabularies are large
        wide = logits[i].astype(np.float64)
        top = wide.max()
        found[i] = top + np.log(np.exp(wide - top).sum()) - wide[token]
    return found


def surprises_in_windows(llm: LLM, token_ids: Sequence[int], window: int) -> Array:
    """The same of a text of any length, computed ``window`` tokens at a time: each window begins anew.

    Raises:
        RequestError: the context, or the free KV pages, do not hold a window.
    """
    parts = (token_ids[start : start + window] for start in range(0, len(token_ids) - 1, window))
    return np.concatenate([np.empty(0), *(surprises(llm.logits(part), part) for part in parts)])


def transformers_trace(path: Path, token_ids: Sequence[int]) -> dict[str, Array]:
    """The trace of transformers in float32 on the same files; no code of the model's repository runs.

    Raises:
        LlmcoreError: transformers is not installed, or does not read the files.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise LlmcoreError(f"verify needs transformers: {error}", remedy="pip install 'llmcore[test]'") from error
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    folder, name = (path, None) if path.is_dir() else (path.parent, path.name)
    extra = {"gguf_file": name} if name else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False, **extra
        ).eval()
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise LlmcoreError(f"transformers does not read {path}: {error}") from error
    with torch.inference_mode():
        result = model(torch.tensor([list(token_ids)]), output_hidden_states=True, use_cache=False)
    states = [state[0].numpy() for state in result.hidden_states]
    # transformers normalises the last state before it hands it over, so the last block shows in the logits alone
    paths = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(len(states) - 2))]
    return {**dict(zip(paths, states[:-1], strict=True)), "logits": result.logits[0].float().numpy()}


def common(trace: Trace, reference: Trace) -> tuple[dict[str, Array], dict[str, Array]]:
    """The parts that both traces have, in the first one's order."""
    names = [name for name in trace if name in reference]
    return {name: trace[name] for name in names}, {name: reference[name] for name in names}

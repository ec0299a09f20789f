"""Which figures are taken of a model: prefill, decode after a depth, batched decode, each at given lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmcore_tools.bench import options
from llmcore_tools.bench.measure import Series, rates
from llmcore_tools.bench.workloads import Took, Workload

KINDS = ("prefill", "decode", "batched")


@dataclass(frozen=True)
class Lengths:
    """What is measured of a model: the values of the flags of the same names."""

    prompts: tuple[int, ...]
    tokens: int
    depths: tuple[int, ...]
    batches: tuple[int, ...]
    batch_depth: int

    @classmethod
    def of(cls, given: Mapping[str, str], chosen: Sequence[str]) -> Lengths:
        """From the flags; raises :class:`ConfigError`."""
        prompts = options.counts(given, options.PROMPTS, (128, 512, 2048))
        depths = options.counts(given, options.DEPTHS, (0, 512, 2048), least=0)
        batches = options.counts(given, options.BATCHES, (8, 16, 32))
        return cls(
            prompts if "prefill" in chosen else (),
            options.count(given, options.TOKENS, 64),
            depths if "decode" in chosen else (),
            batches if "batched" in chosen else (),
            options.count(given, options.BATCH_DEPTH, 128),
        )


@dataclass(frozen=True)
class Trial:
    """One figure: tokens per second of prefill or decode of a workload.

    Attributes:
        kind: ``prefill``, ``decode`` or ``batched``.
    """

    kind: str
    work: Workload

    @property
    def name(self) -> str:
        """As llama.cpp's tools name it: ``pp512``, ``tg64 @ d512``; and ``tg64 × 8`` for a batch."""
        if self.kind == "prefill":
            return f"pp{self.work.prompt}"
        of = f" × {self.work.batch}" if self.kind == "batched" else ""
        depth = self.work.prompt if self.kind == "batched" or self.work.prompt > 1 else 0
        return f"tg{self.work.new}{of}" + (f" @ d{depth}" if depth else "")

    @property
    def amount(self) -> int:
        """Tokens in the timed part."""
        return self.work.prompt if self.kind == "prefill" else self.work.new * self.work.batch

    def rate(self, taken: Sequence[Took]) -> Series:
        """Tokens per second, all sequences together."""
        return rates(self.amount, [took.prefill if self.kind == "prefill" else took.decode for took in taken])

    def as_json(self, rate: Series) -> dict[str, Any]:
        """With its figures."""
        depth = 0 if self.kind == "prefill" or self.work.prompt == 1 else self.work.prompt
        return {
            "test": self.name,
            "kind": self.kind,
            "tokens": self.amount,
            "depth": depth,
            "batch": self.work.batch,
            "tokens_per_s": rate.as_json(),
        }


def trials(lengths: Lengths) -> list[Trial]:
    """Every figure asked for. A sequence without anything before it has one token to start from."""
    decode = [Trial("decode", Workload(max(depth, 1), lengths.tokens)) for depth in lengths.depths]
    batched = [Trial("batched", Workload(lengths.batch_depth, lengths.tokens, size)) for size in lengths.batches]
    prefill = [Trial("prefill", Workload(size, 0)) for size in lengths.prompts]
    return [*prefill, *decode, *batched]


def workload_for(trial: Trial, every: Sequence[Trial]) -> Workload:
    """The workload to run for ``trial``: a request is timed at both ends where trials ask for each of them."""
    if trial.kind == "prefill":
        same = [other.work for other in every if other.kind == "decode" and other.work.prompt == trial.work.prompt]
        return same[0] if same else trial.work
    return trial.work

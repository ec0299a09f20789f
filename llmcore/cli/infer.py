"""Answers a prompt: what ``llama_infer`` and ``qwen_infer`` share."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from llmcore.cli.console import guarded
from llmcore.cli.model import forgetful_cache, load, settings
from llmcore.cli.settings import run_with_settings
from llmcore.config.arguments import CHAT, JSON, NO_CACHE, PROMPT, SYSTEM
from llmcore.config.prompts import read_prompt, read_system
from llmcore.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from llmcore.config.command import Job
    from llmcore.engine.request import Delta, FinishReason, TokenLogprobs
    from llmcore.llm import LLM

FLAGS = (*PROMPT, *CHAT, SYSTEM, JSON, NO_CACHE)


@dataclass
class Answer:
    """One answer as it came, with its times.

    Attributes:
        ttft_s: from the request to its first token.
        decode_s: from the first token to the last.
    """

    prompt_ids: Sequence[int]
    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason = "abort"
    ttft_s: float = 0.0
    decode_s: float = 0.0

    def timings(self, load_s: float) -> dict[str, float | None]:
        """Seconds and tokens per second; None where nothing was measured."""
        steps = len(self.token_ids) - 1
        return {
            "load_s": load_s,
            "ttft_s": self.ttft_s,
            "prefill_tok_s": len(self.prompt_ids) / self.ttft_s if self.ttft_s > 0 else None,
            "decode_tok_s": steps / self.decode_s if steps > 0 and self.decode_s > 0 else None,
        }


def infer_main(name: str, family: str, argv: Sequence[str] | None = None) -> int:
    """The command ``name`` for models of ``family``; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def action() -> int:
        from llmcore.config.command import Command

        command = Command(name, f"answer a prompt with a {family.capitalize()} model", FLAGS)
        with ExitStack() as stack:
            return run_with_settings(command, arguments, Infer(family, stack))

    return guarded(action)


class Infer:
    """Runs the jobs of one command line. The prompt is read once, by the first of them."""

    def __init__(self, family: str, stack: ExitStack) -> None:
        """``stack`` is unwound when all jobs are done."""
        self.family = family
        self.stack = stack
        self._prompt: str | None = None
        self._forgetful = False

    def __call__(self, job: Job) -> int:
        """Answers with the settings of one job; text on stdout as it comes, or one JSON object."""
        if self._prompt is None:
            self._prompt = read_prompt(job.given, sys.stdin)
        if "--no-cache" in job.given and not self._forgetful:
            forgetful_cache(self.stack)
            self._forgetful = True
        if job.number is not None:
            print(f"[{job.number}] {' '.join(job.overrides)}", file=sys.stderr, flush=True)
        started = time.perf_counter()
        llm = load(settings(job), family=self.family)
        try:
            self._answer(llm, job, self._prompt, time.perf_counter() - started)
        finally:
            llm.close()
        return 0

    def _answer(self, llm: LLM, job: Job, prompt: str, load_s: float) -> None:
        ids, continues = prompt_ids(llm, prompt, job.given)
        deltas = llm.stream(ids, SamplingParams.from_config(job.config), continues=continues)
        silent = "--json" in job.given
        answer = collect(deltas, ids, _silence if silent else _show)
        if silent:
            print(json.dumps(as_json(llm, job, answer, load_s), ensure_ascii=False), flush=True)
        else:
            print(flush=True)


def prompt_ids(llm: LLM, prompt: str, given: Mapping[str, str]) -> tuple[list[int], bool]:
    """Token ids of a prompt: through the chat template by default where the model has one, or as ``--raw`` text.

    Second, whether the answer goes on in the prompt's own text.
    """
    system = read_system(given)
    has_template = bool(llm.checkpoint.tokenizer.chat_template)
    if "--raw" in given or not (has_template or "--chat" in given or system is not None):
        return llm.encode(prompt), True
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return llm.chat_ids(messages), False


def collect(deltas: Iterable[Delta], ids: Sequence[int], show: Callable[[str], None]) -> Answer:
    """Gathers an answer, passing its text on as it comes."""
    answer = Answer(ids)
    started = time.perf_counter()
    for delta in deltas:
        now = time.perf_counter() - started
        answer.ttft_s = answer.ttft_s or now
        answer.decode_s = now - answer.ttft_s
        answer.token_ids += delta.token_ids
        answer.logprobs += delta.logprobs
        answer.text.append(delta.text)
        answer.finish_reason = delta.finish_reason or answer.finish_reason
        show(delta.text)
    return answer


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _silence(text: str) -> None:
    """Shows nothing."""


def as_json(llm: LLM, job: Job, answer: Answer, load_s: float) -> dict[str, Any]:
    """What ``--json`` prints."""
    memory = asdict(llm.memory)
    result = {
        "prompt_token_ids": list(answer.prompt_ids),
        "token_ids": answer.token_ids,
        "text": "".join(answer.text),
        "finish_reason": answer.finish_reason,
        "model": job.config.model.ref,
        "backend": backend_in_use(llm),
        "timings": answer.timings(load_s),
        "memory": memory,
    }
    if answer.logprobs:
        result["logprobs"] = [asdict(position) for position in answer.logprobs]
    return result


def backend_in_use(llm: LLM) -> str:
    """The backend that runs most nodes: what was asked for may lack an op, or be overridden for one."""
    return Counter(row.backend for row in llm.explain().rows).most_common(1)[0][0]

"""The Python API: a model that answers.

from llmcore import LLM, SamplingParams

llm = LLM("smollm2")
for answer in llm.generate(["The capital of France is"], SamplingParams(max_tokens=8)):
    print(answer.text)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.config.models import lookup
from llmcore.config.schema import Config, ModelConfig
from llmcore.device import HOST, Place
from llmcore.engine import inspection
from llmcore.engine.embedding import Embedding, Pooling
from llmcore.engine.engine import Engine
from llmcore.engine.load import (
    EngineSettings,
    described,
    make_policy,
    make_runner,
    too_little_memory,
    usable_threads,
)
from llmcore.engine.place import device_of, dtype_of
from llmcore.engine.policies import Policy
from llmcore.engine.preallocation import Preallocation
from llmcore.engine.request import Request, checked_ids
from llmcore.engine.results import Collector, Completion, Explanation, MemoryUse
from llmcore.engine.sampling_params import SamplingParams
from llmcore.engine.stream import Stream
from llmcore.errors import ConfigError, RequestError
from llmcore.graph.packing import PackedCache
from llmcore.native.code import forget_linker
from llmcore.plugins import plugins
from llmcore.registry.choose import Preference, Registry
from llmcore.text.tokenizer import load_tokenizer
from llmcore.weights.cachedir import FetchOptions, Progress
from llmcore.weights.checkpoint import open_checkpoint
from llmcore.weights.sources import fetch

if TYPE_CHECKING:
    from llmcore.native.pool import WorkerPool
    from llmcore.text.chat import ChatTemplate, Message

AUTO = ("numba", "triton", "torch")  # of a CPU, of a GPU, of either; those that are installed are asked
FALLBACK = "torch"  # the backend that runs every op: named in each explanation where it steps in
Prompt = str | Sequence[int]
Array = np.ndarray[Any, Any]


class LLM:
    """A loaded model, bound to kernels and ready to generate.

    One instance runs one step at a time; calls from several threads must be serialised by the caller.
    """

    def __init__(
        self,
        model: str | ModelConfig,
        *,
        backend: str | Sequence[str] = "auto",
        ops: Mapping[str, str] | None = None,
        compute: str = "auto",
        threads: int = 0,
        engine: EngineSettings | None = None,
        cache_dir: Path | None = None,
        progress: Progress | None = None,
        finite: bool = True,
        cache_packed: bool = True,
        family: str = "",
        taps: bool = False,
    ) -> None:
        """Loads a model.

        Args:
            model: a model reference: a default model's name, a path, a hub id, ``pypi:…``.
            backend: a backend's name, or several in order of preference; ``auto`` takes the best that is installed.
            ops: op name → backend name, over ``backend``.
            compute: ``exact`` keeps all activations in float32.
            threads: worker threads; 0 takes all that this process may use.
            cache_dir: where downloads and repacked weights are kept; None is the default place.
            progress: told of every piece of a download.
            finite: refuse weights that hold NaN or infinity.
            cache_packed: keep repacked weights for the next start, and that a file's weights have been looked at.
            family: the only model family to take; empty for any.
            taps: keep each block's result, so that :meth:`trace` can be called.

        Raises:
            LlmcoreError: of the kind that says what is wrong: reference, download, checkpoint, model, registry, config.
        """
        started = time.perf_counter()
        self._closed = False
        self._preallocation: Preallocation | None = None
        if compute not in ("auto", "exact"):
            raise ConfigError(f"compute is {compute!r}", remedy="it must be auto or exact")
        chosen = lookup(model) if isinstance(model, str) else model
        self.model = chosen.ref
        self.threads = usable_threads(threads)
        settings = engine or EngineSettings()
        policy = make_policy(settings.policy, plugins())
        registry = Registry(
            plugins(),
            Preference(_order(backend), dict(ops or {}), compute == "exact", self.threads, settings.kv_dtype),
        )
        device = device_of(settings.device, registry.backends.values())  # a mistake is told before a download
        self.path = fetch(chosen.ref, FetchOptions(cache_dir, chosen.sha256 or "", progress=progress))
        self.checkpoint = open_checkpoint(self.path)
        try:
            self.family, self.spec = described(self.checkpoint, chosen, self.path, plugins(), wanted=family)
            self.tokenizer = load_tokenizer(self.checkpoint.tokenizer)
            self.checkpoint.forget_vocabulary()
            dtype = dtype_of(settings.dtype, device, self.checkpoint.config, exact=compute == "exact")
            self.runner = make_runner(
                self.checkpoint,
                self.spec,
                settings.sizes(self.spec),
                registry,
                lambda: self._pool,
                Place(device, dtype),
                finite=finite,
                cache=PackedCache.at(cache_dir) if cache_packed else None,
                taps=taps,
            )
            self.engine = self._engine(policy, prefix_cache=settings.prefix_cache)
        except BaseException:
            self._let_go()
            raise
        forget_linker()
        if settings.preallocate and device is HOST:
            self._preallocation = Preallocation(list(self.runner.states.values()))
        self.load_s = time.perf_counter() - started

    @classmethod
    def from_config(
        cls, config: Config, *, family: str = "", progress: Progress | None = None, taps: bool = False
    ) -> LLM:
        """Loads the model that the settings of a command describe; raises what the constructor raises."""
        order: Sequence[str] = config.backend.order
        if config.backend.name == "auto":
            order = [name for name in order if name in plugins().backends or name not in AUTO]
        chosen = {"buckets": tuple(config.engine.buckets), "kv_dtype": str(config.engine.kv_dtype)}
        chosen["dtype"] = str(config.engine.dtype)
        engine = vars(config.engine) | chosen
        return cls(
            config.model,
            backend=order,
            ops=config.backend.ops,
            compute=config.compute.value,
            threads=config.threads,
            engine=EngineSettings(**engine),
            cache_dir=Path(config.cache_dir) if config.cache_dir else None,
            progress=progress,
            finite=config.weights.check_finite,
            cache_packed=config.weights.cache_packed,
            family=family,
            taps=taps,
        )

    @cached_property
    def _pool(self) -> WorkerPool:
        from llmcore.native.pool import WorkerPool

        return WorkerPool(self.threads)

    def _engine(self, policy: Policy, *, prefix_cache: bool) -> Engine:
        """The engine over the runner; its sampler takes memory of the device too."""
        place = self.runner.place
        try:
            with place.device.scope():
                return Engine(self.runner, self.tokenizer, self._eos_ids(), policy=policy, prefix_cache=prefix_cache)
        except MemoryError as error:
            raise too_little_memory(place, error) from error

    def _eos_ids(self) -> list[int]:
        """End tokens: the tokenizer's, and those that the model's configs name."""
        found = list(self.tokenizer.eos_ids)
        for source in (self.checkpoint.generation, self.checkpoint.config):
            named = source.get("eos_token_id")
            found += named if isinstance(named, list) else [named] if isinstance(named, int) else []
        return sorted(set(found))

    def close(self) -> None:
        """Ends the worker threads and lets go of the files; the model answers no more."""
        self._closed = True
        if self._preallocation is not None:
            self._preallocation.close()
        self.engine.close()
        self._let_go()

    def _let_go(self) -> None:
        if "_pool" in self.__dict__:
            self._pool.close()
        self.checkpoint.close()

    # -- generation

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Completes each prompt (text, or token ids); many run in one batch. Answers come in the order of the prompts.

        One that failed on its way has the reason ``error`` and what there was until then.

        Raises:
            RequestError: a prompt or parameter that cannot be served; nothing has run then.
        """
        if not isinstance(prompts, str | Sequence | np.ndarray):
            raise RequestError(f"the prompts are a {type(prompts).__name__}", field="prompts", remedy="give a list")
        several = _is_batch(prompts)
        wanted: Sequence[Prompt] = prompts if several else [prompts]  # type: ignore[assignment, list-item]
        each = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(wanted)
        if len(each) != len(wanted):
            raise RequestError(f"{len(wanted)} prompts but {len(each)} sampling parameters", field="params")
        return self._run([(self.encode(prompt), p) for prompt, p in zip(wanted, each, strict=True)], continues=True)

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Completion:
        """The assistant's answer to a conversation, by the model's chat template."""
        return self._run([(self.chat_ids(messages), params or SamplingParams())], continues=False)[0]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, *, continues: bool = True) -> Stream:
        """Deltas of one answer as they come; closing or dropping the stream aborts the request.

        Args:
            continues: whether the answer goes on in the prompt's text, so that a space at its beginning counts.
        """
        return self._stream(self.encode(prompt), params, continues=continues)

    def stream_chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Stream:
        """Like :meth:`stream`, for a conversation."""
        return self._stream(self.chat_ids(messages), params, continues=False)

    def encode(self, prompt: Prompt) -> list[int]:
        """A prompt's token ids; text that looks like a control token stays text."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if not isinstance(prompt, Sequence | np.ndarray) or isinstance(prompt, bytes):
            raise RequestError(
                f"a prompt is a {type(prompt).__name__}", field="prompt", remedy="give text, or a list of token ids"
            )
        ids: list[int] = list(prompt)  # type: ignore[arg-type]  # numpy arrays are none of typing's sequences
        return ids

    def chat_ids(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """A conversation's token ids, up to where the assistant begins.

        Args:
            variables: what else the template reads (``tools`` …).
        """
        return self._template.encode(messages, self.tokenizer, **variables)

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token: no text is shorter in tokens than its bytes over this, normalization aside."""
        return max(map(len, map(self.tokenizer.token_bytes, range(self.tokenizer.vocab_size))), default=1)

    @cached_property
    def _template(self) -> ChatTemplate:
        from llmcore.text.chat import ChatTemplate  # jinja is imported for conversations alone

        return ChatTemplate.of(self.checkpoint.tokenizer)

    def _stream(self, prompt_ids: Sequence[int], params: SamplingParams | None, *, continues: bool) -> Stream:
        self._require_open()
        return Stream(self.engine, self.engine.add(prompt_ids, params or SamplingParams(), continues=continues))

    def _run(self, work: Sequence[tuple[Sequence[int], SamplingParams]], *, continues: bool) -> list[Completion]:
        self._require_open()
        started = time.perf_counter()
        requests: list[Request] = []
        try:
            requests += (self.engine.add(prompt_ids, params, continues=continues) for prompt_ids, params in work)
            collectors = [Collector(request, started) for request in requests]
            while any(request.finish_reason is None for request in requests):
                self.engine.step()
                for collector in collectors:
                    collector.drain()
        finally:
            for request in requests:
                self.engine.abort(request)
        return [collector.completion() for collector in collectors]

    def _require_open(self) -> None:
        if self._closed:
            raise RequestError(f"{self.model} is closed", remedy="load it again: LLM(…)")

    def embed(self, texts: Prompt | Sequence[Prompt], pooling: Pooling = "mean") -> Array:
        """Vectors of length 1 for texts (or token ids), float32 ``[texts, hidden]``.

        Args:
            pooling: ``mean`` of all tokens' last hidden states, or that of the ``last`` token.

        Raises:
            RequestError: a text that is empty, or longer than the context.
        """
        self._require_open()
        several: Sequence[Prompt] = texts if _is_batch(texts) else [texts]  # type: ignore[assignment, list-item]
        jobs = [Embedding(self.engine, self.encode(text), pooling) for text in several]
        for job in jobs:
            try:
                while not job.advance():
                    self.engine.step()  # whoever holds the pages goes on
            finally:
                job.close()
        return np.array([job.vector for job in jobs], np.float32).reshape(len(jobs), self.spec.hidden_size)

    # -- looking inside

    def logits(self, token_ids: Sequence[int], chunk: int | None = None) -> Array:
        """Teacher-forced logits of every position, float32 ``[tokens, vocab]``, computed ``chunk`` tokens at a time.

        Raises:
            RequestError: wrong token ids, or more than the context or the free KV pages hold.
        """
        return self.trace(token_ids, chunk)["logits"]

    def trace(self, token_ids: Sequence[int], chunk: int | None = None) -> dict[str, Array]:
        """Like :meth:`logits`, with each block's result, ``[tokens, hidden]``, by module path, where ``taps`` is on."""
        self._require_open()
        return inspection.trace(self.engine, checked_ids(token_ids, self.spec.vocab_size), chunk)

    def explain(self, tokens: int = 1) -> Explanation:
        """How a step of ``tokens`` tokens is run: the model's nodes with greedy decoding, then the sampler's."""
        self._require_open()
        return inspection.explain(self.engine, tokens)

    @property
    def memory(self) -> MemoryUse:
        """What the model uses now."""
        return inspection.memory(self.runner)


def _order(backend: str | Sequence[str]) -> tuple[str, ...]:
    """Backends by preference; the universal fall-back comes last, and every explanation names it where it is used."""
    if not isinstance(backend, str):
        if not backend:
            raise ConfigError("backend is an empty list", remedy="name one, or auto")
        return tuple(backend)
    if backend == "auto":
        return tuple(name for name in AUTO if name in plugins().backends)
    return tuple(dict.fromkeys((backend, FALLBACK)))


def _is_batch(prompts: Any) -> bool:
    """Whether ``prompts`` is several prompts: a sequence of texts or of id sequences."""
    if isinstance(prompts, str):
        return False
    return len(prompts) == 0 or not all(isinstance(item, Number) for item in prompts)

"""Models of random weights that never were on a disk, loaded through the same doors as any other.

A :class:`Checkpoint` is made of a config alone: the graph of its model says which tensors there are. For measuring
speed all matrices view one block of random bytes, and those of one shape are packed once; but on the device each has
memory of its own, as a cache that held one layer for all would make every figure meaningless.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.device import Place
from llmcore.engine import inspection
from llmcore.engine.accelerated import AcceleratedRunner
from llmcore.engine.engine import Engine
from llmcore.engine.load import family_of
from llmcore.engine.request import Request
from llmcore.engine.sampling_params import SamplingParams
from llmcore.engine.sizes import Sizes
from llmcore.engine.step_graph import model_graph
from llmcore.errors import GenerationError
from llmcore.graph.weight_store import WeightStore
from llmcore.hookspecs import KernelInfo
from llmcore.model_config import IGNORABLE
from llmcore.model_spec import ModelSpec
from llmcore.plugins import plugins, resolve
from llmcore.registry.choose import Preference, Registry
from llmcore.testing.operands import stored
from llmcore.text.tokenizer import Tokenizer
from llmcore.weights.checkpoint import Checkpoint, TokenizerSource
from llmcore.weights.claims import claim
from llmcore.weights.formats import TensorFormat, tensor_format
from llmcore.weights.tensor import Tensor

if TYPE_CHECKING:
    from llmcore.device.accelerator import Accelerator

Array = np.ndarray[Any, Any]
BACKENDS = ("triton", "torch")
TILE = 1 << 20  # elements that are drawn; what is larger repeats them
SPREAD = 0.02  # standard deviation of the weights of models whose speed is measured


class NoText(Tokenizer):
    """The tokenizer of a model that has none: every token is one letter."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size, bos_id=None, eos_ids=(), special_ids=())

    def id_of(self, token: str) -> int | None:
        """No token has a name."""

    def _encode_text(self, text: str, *, first: bool) -> list[int]:  # noqa: ARG002 - nothing stands before any
        return [ord(letter) % self.vocab_size for letter in text]

    def _parse(self, text: str) -> list[int]:
        return self._encode_text(text, first=True)

    def _token_bytes(self, token: int) -> bytes:
        return bytes((ord("a") + token % 26,))


def spec_of(config: Mapping[str, Any]) -> ModelSpec:
    """The model that a config describes."""
    spec: ModelSpec = resolve(family_of(dict(config), plugins()).target)(dict(config))
    return spec


def shapes_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model, and its shape."""
    return dict(model_graph(spec_of(config), Sizes(1, 1, 1, 16, 16, 1)).weights)


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a tensor is stored in the model's format; norms and biases are float32."""
    return len(shape) == 2


def alike(config: Mapping[str, Any], form: str, seed: int = 0) -> Checkpoint:
    """A model to be timed: all matrices view one block of random numbers of ``form``."""
    rng, wanted = np.random.default_rng(seed), tensor_format(form)
    shapes = shapes_of(config)
    largest = max(math.prod(shape) for shape in shapes.values() if is_matrix(shape))
    count = min(TILE, largest) // wanted.block
    tile = _encoded(rng.standard_normal((count, wanted.block)).astype(np.float32) * SPREAD, wanted)
    block = np.resize(tile, wanted.nbytes(-(-largest // wanted.block) * wanted.block))

    def tensors() -> Iterator[Tensor]:
        for name, shape in shapes.items():
            if is_matrix(shape):
                yield stored(name, shape, wanted, block[: wanted.nbytes(math.prod(shape))])
            else:
                yield _vector(name, shape, rng)

    return _checkpoint(config, tensors())


def distinct(config: Mapping[str, Any], form: str, seed: int = 0) -> Checkpoint:
    """A model whose numbers are to be compared: every tensor is drawn by itself, so that activations and logits spread.

    Whatever is left out, a bias, a norm, the scaling of RoPE, moves logits by far more than comparisons tolerate.
    """
    rng, wanted = np.random.default_rng(seed), tensor_format(form)

    def tensors() -> Iterator[Tensor]:
        for name, shape in shapes_of(config).items():
            if not is_matrix(shape):
                yield _vector(name, shape, rng)
                continue
            near_text = "embed_tokens" in name or name.startswith("lm_head")
            factor = 0.15 if near_text else 1.3 / shape[1] ** 0.5
            values = (factor * rng.standard_normal(shape)).astype(np.float32)
            yield stored(name, shape, wanted, _encoded(values.reshape(-1, wanted.block), wanted))

    return _checkpoint(config, tensors())


def _vector(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """A norm around 1, or a bias of the size of what it is added to."""
    values = 0.7 * rng.standard_normal(shape) if name.endswith("bias") else 1 + 0.3 * rng.standard_normal(shape)
    return stored(name, shape, tensor_format("F32"), values.astype(np.float32).view(np.uint8))


def _encoded(values: Array, form: TensorFormat) -> Array:
    assert form.encode is not None, f"{form.name} has no encoder"
    return np.ascontiguousarray(form.encode(values)).reshape(-1).view(np.uint8)


def _checkpoint(config: Mapping[str, Any], tensors: Iterator[Tensor]) -> Checkpoint:
    named = {tensor.name: tensor for tensor in tensors}
    return Checkpoint(Path("random weights"), "random", dict(config), named, TokenizerSource("none"))


def read_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of weights that a decode step has to read, as the checkpoint stores them: of an embedding that is not the
    classifier too, single rows."""
    tied = checkpoint.config["tie_word_embeddings"]
    return sum(t.nbytes for name, t in checkpoint.tensors.items() if tied or "embed_tokens" not in name)


@dataclass
class SharedWeights(WeightStore):
    """Weights of which those of one shape and format hold the same numbers: packed once, and copied on the device.

    Attributes:
        first: what a tensor is like → the first of its kind on the device.
    """

    first: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def prepare(self, wanted: Any) -> None:
        """Packs what has not been packed, one at a time."""
        for key, kernel in wanted:
            if kernel.pack:
                self._packed(key, kernel)

    def _packed(self, key: str, kernel: KernelInfo) -> Any:
        return self.operand(key, kernel)

    def _mapped(self, key: str, array: Array) -> Any:
        if key not in self.mapped:
            self.mapped[key] = self._own(key, ("as it is",), lambda: array)
        return self.mapped[key]

    def _make(self, key: Any, make: Callable[[], Array]) -> Any:
        if key not in self.made:
            self.made[key] = self._own(key[0], key[1:], make)
        return self.made[key]

    def _own(self, name: str, layout: Sequence[Any], make: Callable[[], Array]) -> Any:
        tensor = self.tensors[name]
        kind = tensor.shape, tensor.format.name, *layout
        if kind in self.first:
            return self.first[kind].clone()
        self.first[kind] = self.device.put(np.ascontiguousarray(make()))
        return self.first[kind]


@dataclass
class MeasuredRunner(AcceleratedRunner):
    """A runner that records steps of those sizes only that are measured; others are recorded when they first come.

    Each takes seconds where a kernel has to be compiled for it.
    """

    measured: Sequence[int] = ()

    def _record(self, head: str, counts: Sequence[int]) -> None:
        super()._record(head, [count for count in counts if head == "ids" and count in self.measured])


@dataclass
class Loaded:
    """A model that answers, by token ids alone."""

    checkpoint: Checkpoint
    spec: ModelSpec
    runner: AcceleratedRunner
    engine: Engine

    @property
    def device(self) -> Accelerator:
        """Where it is."""
        from llmcore.device.accelerator import Accelerator

        device = self.runner.place.device
        assert isinstance(device, Accelerator)
        return device

    def logits(self, ids: Sequence[int], chunk: int | None = None) -> Array:
        """Float32 ``[tokens, vocab]``, computed ``chunk`` tokens at a time; one at a time is decoding."""
        return inspection.trace(self.engine, ids, chunk)["logits"]

    def add(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[Request]:
        """Requests for greedy answers of just so many tokens."""
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        return [self.engine.add(prompt, params) for prompt in prompts]

    def finish(self, requests: Sequence[Request]) -> list[list[int]]:
        """Steps until all have ended; their answers. Raises :class:`GenerationError` for one that failed."""
        while any(request.finish_reason is None for request in requests):
            self.engine.step()
        for request in requests:
            if request.finish_reason == "error":
                raise GenerationError(str(request.error))
        return [list(request.generated) for request in requests]

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Greedy answers."""
        return self.finish(self.add(prompts, tokens))


def load(
    checkpoint: Checkpoint,
    place: Place,
    sizes: Sizes,
    *,
    shared: bool = False,
    ops: Mapping[str, str] | None = None,
    batches: Sequence[int] = (),
) -> Loaded:
    """Binds a checkpoint to the GPU's kernels.

    Args:
        shared: it was made by :func:`alike`.
        ops: op → the backend that is to run it.
        batches: the decode steps to be recorded at once; all of them if empty.
    """
    spec = spec_of(checkpoint.config)
    registry = Registry(plugins(), Preference(BACKENDS, dict(ops or {}), kv_dtype="auto"))
    graph = model_graph(spec, sizes)
    tied = (r"lm_head\.weight",) if spec.tied else ()
    tensors = claim(checkpoint, graph.weights, (*IGNORABLE, *tied))
    store = SharedWeights if shared else WeightStore
    parts = graph, sizes, spec.vocab_size, store(tensors, device=place.device), registry, _no_pool, place
    with place.device.scope():
        runner = MeasuredRunner(*parts, measured=batches) if batches else AcceleratedRunner(*parts)
        return Loaded(checkpoint, spec, runner, Engine(runner, NoText(spec.vocab_size), (), prefix_cache=False))


def _no_pool() -> Any:
    raise AssertionError("none of these backends has native kernels")


sizes_for = partial(Sizes, page_size=16, pages=0)
"""Sizes by ``tokens``, ``seqs``, ``rows`` and ``context``."""

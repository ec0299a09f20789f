"""``llmcore bench make-model``: a GGUF file of a model's shape with random weights, to measure what nobody has fetched.

Weights are random blocks whose scales keep hidden states of the size that trained ones have; they are written as they
are drawn, so memory holds one tensor at most. llama.cpp reads the file too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmcore.config.arguments import Flag, extract, usage
from llmcore.errors import ConfigError, near
from llmcore.weights.formats import FORMATS, TensorFormat

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model; ``tied``: the classifier is the embedding."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool = True
    rope_base: float = 500_000.0
    context: int = 8192

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names as GGUF has them, and shapes as numpy has them; vectors are norms."""
        yield "token_embd.weight", (self.vocab, self.hidden)
        yield "output_norm.weight", (self.hidden,)
        if not self.tied:
            yield "output.weight", (self.vocab, self.hidden)
        for layer in range(self.layers):
            for name, shape in {
                "attn_norm": (self.hidden,),
                "attn_q": (self.heads * self.head_dim, self.hidden),
                "attn_k": (self.kv_heads * self.head_dim, self.hidden),
                "attn_v": (self.kv_heads * self.head_dim, self.hidden),
                "attn_output": (self.hidden, self.heads * self.head_dim),
                "ffn_norm": (self.hidden,),
                "ffn_gate": (self.ffn, self.hidden),
                "ffn_up": (self.ffn, self.hidden),
                "ffn_down": (self.hidden, self.ffn),
            }.items():
                yield f"blk.{layer}.{name}.weight", shape


SHAPES = {
    "smollm2-135m": Shape(30, 576, 9, 3, 64, 1536, 49152, rope_base=100_000.0),
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 64, 8192, 128256),
    "llama-3.2-3b": Shape(28, 3072, 24, 8, 128, 8192, 128256),
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 128, 14336, 128256, tied=False),
}
QUANTIZED = tuple(name for name, form in FORMATS.items() if form.quantized and form.decode)

SHAPE = Flag("--shape", f"whose sizes: {', '.join(SHAPES)}", "NAME")
FORMAT = Flag("--format", f"of all matrices (Q8_0 by default): {', '.join(QUANTIZED)}", "NAME")
FLAGS = (SHAPE, FORMAT)
HELP = Flag("--help", "show this")
USAGE = "usage: llmcore bench make-model --shape NAME [--format NAME] FILE.gguf"


def main(argv: Sequence[str]) -> int:
    """Writes the file; returns the exit code."""
    given, rest = extract(argv, (*FLAGS, HELP))
    if HELP.name in given:
        print(f"{USAGE}\n\n{usage(FLAGS)}")
        return 0
    name, quant = given.get(SHAPE.name, ""), given.get(FORMAT.name, "Q8_0")
    if name not in SHAPES:
        raise ConfigError(f"there is no shape {name!r}" if name else "which shape?", remedy=near(name, SHAPES))
    if quant not in QUANTIZED:
        raise ConfigError(f"there is no quantized format {quant!r}", remedy=near(quant, QUANTIZED))
    if len(rest) != 1:
        raise ConfigError(f"one file, not {len(rest)}", remedy=USAGE)
    file = Path(rest[0])
    if file.exists():
        raise ConfigError(f"{file} exists", remedy="name another file, or delete it")
    write_model(file, SHAPES[name], FORMATS[quant], name)
    print(f"{file}: {file.stat().st_size / 1e9:.2f} GB", file=sys.stderr)
    return 0


def write_model(file: Path, shape: Shape, form: TensorFormat, name: str) -> None:
    """Writes a model of ``shape`` to ``file``, all of its matrices in format ``form``.

    Raises:
        ConfigError: the ``gguf`` package is not installed, or the shape's rows are no whole blocks.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "writing a GGUF file needs the gguf package", remedy="pip install 'llmcore[bench]'"
        ) from error
    widths = {tensor[1][-1] for tensor in shape.tensors() if len(tensor[1]) > 1}
    if any(width % form.block for width in widths):
        raise ConfigError(f"{form.name} has blocks of {form.block}, and rows of {name} are no multiple of that")
    writer = gguf.GGUFWriter(file, "llama")
    _add_sizes(writer, shape, name)
    _add_tokenizer(writer, shape.vocab)
    kind = gguf.GGMLQuantizationType[form.name]
    for key, dims in shape.tensors():
        if len(dims) == 1:
            writer.add_tensor_info(key, dims, np.dtype(np.float32), 4 * dims[0])
        else:
            row = dims[1] // form.block * form.block_bytes
            stored = (dims[0], row)
            writer.add_tensor_info(key, stored, np.dtype(np.uint8), dims[0] * row, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    factors = _unit_factors(form, rng)
    for _, dims in shape.tensors():
        writer.write_tensor_data(_values(dims, form, factors, rng))
    writer.close()


def _add_sizes(writer: Any, shape: Shape, name: str) -> None:
    writer.add_name(f"{name}, random weights")
    writer.add_vocab_size(shape.vocab)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)


def _add_tokenizer(writer: Any, vocab: int) -> None:
    """Byte-level BPE: 256 bytes, one merge (readers want some), two special tokens, and names for the rest."""
    import gguf

    from llmcore_tokenizers.pieces import CHARACTER_OF

    letters = [CHARACTER_OF[byte] for byte in range(256)]
    special = ["<|begin|>", "<|end|>"]
    tokens = [*letters, *special, "he"]
    tokens += [f"<|unused_{number}|>" for number in range(vocab - len(tokens))]
    kinds = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL]
    kinds += [gguf.TokenType.UNUSED] * (vocab - len(kinds))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)


def _unit_factors(form: TensorFormat, rng: np.random.Generator) -> list[float]:
    """What a block's scale, and minimum, must be for random codes to have mean 0 and variance 1."""
    blocks = rng.integers(0, 256, (4096, form.block_bytes), dtype=np.uint8)
    assert form.decode is not None
    parts = [form.decode(_scaled(blocks, form, one)) for one in np.eye(len(form.floats)).tolist()]
    ratio = -float(parts[0].mean() / parts[1].mean()) if len(parts) == 2 else 0.0
    spread = float((parts[0] + ratio * parts[-1]).std()) if len(parts) == 2 else float(parts[0].std())
    return [1 / spread, ratio / spread][: len(parts)]


def _scaled(blocks: Array, form: TensorFormat, factors: Sequence[float], signs: Array | None = None) -> Array:
    """``blocks`` with these scales and minima: float16 in every quantized format that there is."""
    signs = np.ones(len(blocks), np.float32) if signs is None else signs
    for (at, _), factor in zip(form.floats, factors, strict=True):
        blocks[:, at : at + 2] = (factor * signs).astype("<f2").view(np.uint8).reshape(-1, 2)
    return blocks


def _values(dims: tuple[int, ...], form: TensorFormat, factors: Sequence[float], rng: np.random.Generator) -> Array:
    """A norm's ones, or a matrix whose products with tokens of variance 1 have variance 1."""
    if len(dims) == 1:
        return np.ones(dims, np.float32)
    count = dims[0] * dims[1] // form.block
    blocks = np.frombuffer(bytearray(rng.bytes(count * form.block_bytes)), np.uint8).reshape(count, form.block_bytes)
    signs = rng.choice(np.array([-1, 1], np.float32), count)  # else the codes' mean is that of all weights
    scaled = _scaled(blocks, form, [factor / dims[1] ** 0.5 for factor in factors], signs)
    return scaled.reshape(dims[0], -1)

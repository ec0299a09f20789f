"""The checkpoint protocol: what every format plugin returns, and how a path is handed to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from llmcore.errors import CheckpointError, ModelReferenceError
from llmcore.weights.mapping import MappedFile
from llmcore.weights.tensor import Tensor

if TYPE_CHECKING:
    from llmcore.plugins import Plugins

TokenizerKind = Literal["hf_json", "sentencepiece", "gguf", "none"]


@dataclass(frozen=True)
class TokenizerSource:
    """A tokenizer as its checkpoint describes it: plain data, nothing built yet.

    Attributes:
        kind: ``"hf_json"`` (a ``tokenizer.json``), ``"sentencepiece"`` (a ``tokenizer.model``), ``"gguf"`` (metadata of
            a GGUF file), or ``"none"`` (the checkpoint has no tokenizer).
        path: the tokenizer's file; for ``"gguf"`` the checkpoint file, for messages.
        data: for ``"gguf"``: ``tokens`` list[str], ``scores`` list[float] (or empty), ``token_types`` list[int] (or
            empty), ``merges`` list[str] (or empty), ``model`` and ``pre`` (str), ``bos_id``, ``eos_id``, ``unk_id``,
            ``pad_id``, ``eot_id``, ``eom_id`` (int | None), ``add_bos``, ``add_eos``, ``add_space_prefix``,
            ``remove_extra_whitespaces`` (bool | None: None where the file does not say).
        config: the content of ``tokenizer_config.json``; empty where there is none.
        chat_template: jinja source; the one named "default" where there are several; None where there is none.
        special_tokens: role → text, e.g. ``{"bos_token": "<s>"}``.
    """

    kind: TokenizerKind
    path: Path | None = None
    data: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    special_tokens: dict[str, str] = field(default_factory=dict)


@dataclass
class Checkpoint:
    """An opened model: its configuration, its mapped tensors, its tokenizer.

    Attributes:
        path: the directory or file that was opened.
        format: the name of the format plugin.
        config: in the keys of Hugging Face's ``config.json``. A GGUF's metadata is translated to them, with two of our
            own: ``rope_interleaved`` (Q and K rows are ordered for interleaved RoPE) and ``rope_freq_factors`` (list of
            float: each of the head_dim/2 frequencies is divided by its factor).
        tensors: by their Hugging Face names (``model.layers.0.self_attn.q_proj.weight`` …).
        tokenizer: as found; not built.
        generation: the keys of ``generation_config.json``; empty where there is none.
        metadata: free text that the file carries (``general.*`` of GGUF, ``__metadata__`` of safetensors).
        files: the mapped files.
    """

    path: Path
    format: str
    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    tokenizer: TokenizerSource
    generation: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    files: tuple[MappedFile, ...] = ()

    @property
    def mapped_bytes(self) -> int:
        """The size of all mapped files."""
        return sum(file.size for file in self.files)

    def forget_vocabulary(self) -> None:
        """Drops the raw tokenizer data, megabytes of strings, once a tokenizer has been made of it."""
        self.tokenizer.data.clear()

    def close(self) -> None:
        """Lets go of the mappings; arrays that were taken from tensors stay valid, new ones cannot be taken."""
        for file in self.files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CONVERT = (
    "we never unpickle: convert it once, where you trust the file, with transformers: "
    "AutoModelForCausalLM.from_pretrained(path).save_pretrained(new_path, safe_serialization=True)"
)


def open_checkpoint(path: Path | str, plugins: Plugins | None = None) -> Checkpoint:
    """Opens the directory or file ``path`` with the format plugin that recognizes it.

    Args:
        plugins: whose formats to ask; those of this environment if None.

    Raises:
        ModelReferenceError: there is nothing at ``path``.
        CheckpointError: no format recognizes it, or it is damaged.
    """
    from llmcore.plugins import plugins as installed
    from llmcore.plugins import resolve

    path = Path(path)
    if not path.exists():
        raise ModelReferenceError(f"{path}: no such file or directory", remedy="check the path")
    formats = (installed() if plugins is None else plugins).formats
    for info in formats.values():
        if resolve(info.matches)(path):
            checkpoint: Checkpoint = resolve(info.open)(path)
            return checkpoint
    known = "; ".join(f"{info.name}: {info.summary}" for info in formats.values()) or "none is installed"
    pickled = _pickled(path)
    if pickled is not None:
        raise CheckpointError(
            "is a pickled checkpoint, which can run code when it is read", file=pickled, remedy=CONVERT
        )
    raise CheckpointError("no checkpoint format recognizes this", file=path, remedy=f"formats: {known}")


def _pickled(path: Path) -> Path | None:
    """A pickled weight file at or in ``path``, if there is one."""
    candidates = sorted(path.iterdir()) if path.is_dir() else [path]
    return next((each for each in candidates if each.suffix.lower() in PICKLED), None)

"""Which files of a hub repository make a model: safetensors with their JSON, or one GGUF. Never pickles."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from llmcore.errors import DownloadError, ModelReferenceError, near

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
BESIDE_SAFETENSORS = (".json", ".jinja")
QUANT = re.compile(r"(?<![A-Za-z0-9])((?:I?Q\d\w*|BF16|F16|F32))(?=[-.]|$)", re.I)
PART = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Choice:
    """The files to download; ``main`` is the one to open, or empty for their directory."""

    files: tuple[str, ...]
    main: str = ""


def choose(repository: str, files: Iterable[str], quant: str) -> Choice:
    """Picks from the file names of a repository.

    Args:
        repository: its name, for messages.
        files: paths in it.
        quant: which GGUF file is wanted (``Q4_K_M``), or empty.

    Raises:
        ModelReferenceError: it has no such quantization, or several and none was named.
        DownloadError: it holds no weights, or only pickled ones, which could run code.
    """
    names = sorted(name for name in files if ".." not in name.split("/") and not name.startswith("/"))
    ggufs = [name for name in names if name.endswith(".gguf") and "mmproj" not in name]
    plain = [name for name in names if "/" not in name]  # onnx/, original/ … are other forms of the same weights
    weights = [name for name in plain if name.endswith(".safetensors")]
    if quant or (ggufs and not weights):
        return _choose_gguf(repository, ggufs, quant)
    if not weights:
        raise _no_weights(repository, names)
    named = [name for name in weights if name.startswith("model")] or weights  # not a second, consolidated copy
    beside = [name for name in plain if name.endswith(BESIDE_SAFETENSORS) or name == "tokenizer.model"]
    return Choice((*named, *beside))


def _choose_gguf(repository: str, ggufs: list[str], quant: str) -> Choice:
    models: dict[str, list[str]] = {}  # a large model comes in numbered parts
    for name in ggufs:
        models.setdefault(PART.sub("", name.removesuffix(".gguf")), []).append(name)
    wanted = re.compile(rf"(?:^|[-._/]){re.escape(quant)}(?=[-./]|$)", re.I)
    found = [parts for stem, parts in models.items() if wanted.search(stem)] if quant else list(models.values())
    if len(found) == 1:
        return Choice(tuple(found[0]), main=found[0][0])
    offered = {match[-1].upper() for stem in models if (match := QUANT.findall(stem))} or set(models)
    if not found:
        raise ModelReferenceError(
            f"{repository} has no GGUF file of quantization {quant!r}", remedy=near(quant, offered)
        )
    first = sorted(offered)[0]
    raise ModelReferenceError(
        f"{repository} offers {len(found)} GGUF files{f' of {quant!r}' if quant else ''}: {', '.join(sorted(offered))}",
        remedy=f"say which one: {repository}:{first}",
    )


def _no_weights(repository: str, names: list[str]) -> DownloadError:
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled:
        return DownloadError(
            f"{repository} holds only pickled weights ({', '.join(pickled[:3])}), which can run code",
            remedy="look for a repository that offers the model as safetensors or GGUF",
        )
    return DownloadError(f"{repository} holds neither safetensors nor GGUF weights", remedy="is it a model repository?")

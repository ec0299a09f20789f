"""From settings to a loaded model, for the commands that need one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from llmcore.config.schema import Config, ModelConfig
from llmcore.errors import UnsupportedModelError
from llmcore.plugins import plugins

if TYPE_CHECKING:
    from llmcore.engine.sampling_params import SamplingParams
    from llmcore.llm import LLM


def load(config: Config, *, family: str = "", taps: bool = False) -> LLM:
    """Loads the model that ``config`` names, showing downloads on stderr.

    Args:
        family: the only model family to take; empty for any.
        taps: keep each block's result, for comparisons.

    Raises:
        LlmcoreError: of the kind that says what is wrong; for another family, with the command that fits.
    """
    from llmcore.llm import LLM
    from llmcore.weights.cachedir import FetchOptions
    from llmcore.weights.progress import TerminalProgress
    from llmcore.weights.sources import fetch

    check_backends(config)
    model = config.model
    with TerminalProgress() as progress:
        cache_dir = Path(config.cache_dir).expanduser() if config.cache_dir else None
        if cache_dir is not None:
            os.environ["LLMCORE_CACHE"] = str(cache_dir)  # kernels are compiled into it too, once per process
        path = fetch(model.ref, FetchOptions(cache_dir, model.sha256 or "", progress=progress))
        if family:
            refuse_other_family(path, model.ref, family)
        here = replace(config, model=ModelConfig(str(path), None, model.ignore_config_keys))
        return LLM.from_config(here, progress=progress, taps=taps)


def check_backends(config: Config) -> None:
    """Raises :class:`PluginError` for a backend that is not installed, before anything is fetched.

    ``auto`` only prefers: it passes over what is not there.
    """
    asked = list(config.backend.ops.values())
    if config.backend.name != "auto":
        asked += config.backend.order
    for name in asked:
        plugins().backend(name)


def refuse_other_family(path: Path, reference: str, family: str) -> None:
    """Raises :class:`UnsupportedModelError` naming the command that fits, before anything but a header is read."""
    from llmcore.engine.load import family_of
    from llmcore.weights.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    try:
        found = family_of(checkpoint.config, plugins())
    finally:
        checkpoint.close()
    if found.name != family:
        fitting = f"{found.command} runs it" if found.command else "`llmcore chat` runs it"
        raise UnsupportedModelError(
            f"{reference} is a {found.name} model, not a {family} model", key="model_type", remedy=fitting
        )


def sampling_params(config: Config) -> SamplingParams:
    """The sampling settings of one request."""
    from llmcore.engine.sampling_params import SamplingParams

    chosen = config.sampling
    return SamplingParams(
        max_tokens=config.max_new_tokens,
        temperature=chosen.temperature,
        top_k=chosen.top_k,
        top_p=chosen.top_p,
        min_p=chosen.min_p,
        repetition_penalty=chosen.repetition_penalty,
        presence_penalty=chosen.presence_penalty,
        frequency_penalty=chosen.frequency_penalty,
        seed=config.seed,
        stop=tuple(chosen.stop),
        stop_token_ids=tuple(chosen.stop_token_ids),
        ignore_eos=chosen.ignore_eos,
        logprobs=chosen.logprobs,
    )


def forgetful_cache(stack: ExitStack) -> None:
    """For ``--no-cache``: what this process fetches, compiles or repacks goes to a folder that ``stack`` removes."""
    before = os.environ.get("LLMCORE_CACHE")
    os.environ["LLMCORE_CACHE"] = stack.enter_context(TemporaryDirectory(prefix="llmcore-"))

    def restore() -> None:
        if before is None:
            os.environ.pop("LLMCORE_CACHE", None)
        else:
            os.environ["LLMCORE_CACHE"] = before

    stack.callback(restore)


def model_as_setting(argv: Sequence[str]) -> list[str]:
    """``COMMAND MODEL …`` is short for ``COMMAND model=MODEL …``."""
    if argv and "=" not in argv[0] and not argv[0].startswith("-"):
        return [f"model={argv[0]}", *argv[1:]]
    return list(argv)

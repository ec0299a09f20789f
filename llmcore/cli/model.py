"""From settings to a loaded model, for the commands that need one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from llmcore.config.schema import Config

if TYPE_CHECKING:
    from llmcore.config.command import Job
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
    from llmcore.weights.progress import TerminalProgress

    if config.cache_dir:  # kernels are compiled into it too, once per process
        os.environ["LLMCORE_CACHE"] = str(Path(config.cache_dir).expanduser())
    with TerminalProgress() as progress:
        return LLM.from_config(config, family=family, progress=progress, taps=taps)


def settings(job: Job) -> Config:
    """The settings of a job; with ``--no-cache``, repacked weights are not kept at all."""
    if "--no-cache" not in job.given:
        return job.config
    return replace(job.config, weights=replace(job.config.weights, cache_packed=False))


def forgetful_cache(stack: ExitStack) -> None:
    """For ``--no-cache``: what this process fetches or compiles goes to a folder that ``stack`` removes."""
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

"""Surroundings in which Hydra does nothing unasked: no trace in the working directory, no printing of errors."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from omegaconf import OmegaConf

FULL_ERROR = "HYDRA_FULL_ERROR"
SCRATCH = "llmcore_scratch"  # the resolver that infer.yaml names


def register_scratch(stack: ExitStack) -> None:
    """A folder for what Hydra insists on writing during a sweep, made when first asked for and removed at the end."""
    made: list[str] = []

    def scratch() -> str:
        if not made:
            made.append(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmcore-")))
        return made[0]

    OmegaConf.register_new_resolver(SCRATCH, scratch, replace=True)


@contextmanager
def as_command_line(argv: list[str]) -> Iterator[None]:
    """Hydra reads ``sys.argv``."""
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def unreported_errors() -> Iterator[None]:
    """Hydra raises its errors, in place of printing them and exiting; and a log that nobody reads is no error."""
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    raises, logging.raiseExceptions = logging.raiseExceptions, False  # ``--info | head`` ends the pipe under its log
    try:
        yield
    finally:
        logging.raiseExceptions = raises
        if before is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = before

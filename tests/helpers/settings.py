"""Runs command lines through Hydra with a task that only remembers its jobs."""

from __future__ import annotations

from collections.abc import Sequence

from llmcore.config.arguments import CHAT, JSON, PROMPT, SYSTEM
from llmcore.config.command import Command, Installed, Job
from llmcore.config.launch import run
from llmcore.errors import LlmcoreError

COMMAND = Command("answer_me", "answer with a model", (*PROMPT, *CHAT, SYSTEM, JSON))
INSTALLED = Installed(
    ("linear", "rms_norm", "rope"), ("numba", "torch", "mine"), lambda text: "/" in text or "~" in text
)


class Jobs:
    """What ran: jobs, and the errors that jobs ended with."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.errors: list[str] = []

    def run(self, argv: Sequence[str], installed: Installed = INSTALLED) -> int:
        """Runs a command line; composition errors are raised."""
        return run(COMMAND, argv, self._task, installed, self._report)

    def _task(self, job: Job) -> int:
        self.jobs.append(job)
        return 0

    def _report(self, error: LlmcoreError) -> int:
        self.errors.append(str(error))
        return 2

"""Runs a command from its settings: composed directly where the command line is plain, by Hydra where it is not."""

from __future__ import annotations

from collections.abc import Sequence

from llmcore.config import direct
from llmcore.config.arguments import VERSION, extract
from llmcore.config.checks import check, check_backends
from llmcore.config.command import Command, Installed, Job, Report, Task
from llmcore.errors import LlmcoreError


def run(command: Command, argv: Sequence[str], task: Task, installed: Installed, report: Report) -> int:
    """Does what the command line asks for; returns the exit code: the highest of all jobs.

    Args:
        task: runs one job.
        report: tells the user about an error in one job, and returns its exit code.

    Raises:
        ConfigError: the command line or a config file is wrong; no job has run.
    """
    given, rest = extract(argv, (*command.flags, VERSION))
    config = None if VERSION.name in given else direct.compose(command.config, rest, installed.is_reference)
    if config is None:
        from llmcore.config import compose

        return compose.run(command, argv, task, installed, report)
    try:
        check(config)
        check_backends(config, installed.backends)
        return task(Job(config, given, tuple(rest)))
    except LlmcoreError as error:
        return report(error)

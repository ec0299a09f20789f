"""The process that runs stages: ``python -m llmcore_tools.gpu.check_run FOLDER STAGE,… BUDGET [rehearse] [fresh]``.

It imports once what every stage needs, which takes seconds, and forks a process for each; so it must not touch CUDA
itself, nor start threads.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from llmcore_tools.gpu.check_report import compose, write_report
from llmcore_tools.gpu.check_stages import STAGES, pending, run_all

PRELOADED = ("torch", "triton", "llmcore.llm", "llmcore.testing.conformance")


def main(argv: Sequence[str]) -> int:
    """Runs the stages, writes the report; returns the exit code of the command."""
    folder, names, budget, *how = argv
    started, out, rehearse = time.monotonic(), Path(folder), "rehearse" in how
    wanted = [stage for stage in STAGES if stage.name in names.split(",")]
    for name in PRELOADED:
        import_module(name)
    left = float(budget) - (time.monotonic() - started)
    missed = run_all(out, wanted if "fresh" in how else pending(out, wanted, rehearse), left, rehearse, _say)
    found = compose(out, rehearse, missed)
    write_report(out, found)
    _say(f"{out / 'report.md'}: {found.summary} ({time.monotonic() - started:.0f} s)")
    return 0 if found.holds else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

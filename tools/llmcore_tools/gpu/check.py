"""``llmcore gpu-check``: everything that only a GPU can tell, in one command that ends within ten minutes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmcore.config.arguments import Flag, extract, usage
from llmcore.device.base import may_have_gpu
from llmcore.errors import ConfigError
from llmcore_tools.bench.options import ONLY, count, parts
from llmcore_tools.gpu.check_stages import NAMES, STAGES, Stage, environment

BUDGET_S = 600
OUT = Flag("--out", "the folder of the run: what each stage leaves, report.json and report.md", "DIR")
BUDGET = Flag("--budget", f"seconds for all stages together ({BUDGET_S} by default)", "SECONDS")
STAGE = Flag(ONLY.name, f"run some of it, with commas between: {', '.join(NAMES)}", "STAGE,STAGE")
FRESH = Flag("--fresh", "run stages again that have left a file in the folder")
REHEARSE = Flag("--rehearse", "play every stage on the CPU, at toy sizes, with kernels in Triton's interpreter")
HELP = Flag("--help", "show this")
FLAGS = (OUT, BUDGET, STAGE, FRESH, REHEARSE, HELP)
USAGE = "usage: llmcore gpu-check --out DIR [flag …]"
EXPLANATION = """\
Checks the GPU backend on this machine's GPU and measures it. Stages that have left a file in the folder are not run
again, so an interrupted run goes on where it was. The exit code is 0 only if everything that has run holds."""


def main(argv: Sequence[str]) -> int:
    """Runs what has not been run; returns the exit code: 0 if all of it holds, 1 if not.

    Raises:
        ConfigError: a flag is wrong, the folder cannot be made, or there is no GPU.
    """
    given, rest = extract(argv, FLAGS)
    if HELP.name in given:
        stages = "\n".join(f"  {stage.name:<12} {stage.summary}" for stage in STAGES)
        print(f"{USAGE}\n\n{EXPLANATION}\n\n{usage(FLAGS)}\n\nstages:\n{stages}")
        return 0
    if rest:
        raise ConfigError(f"unexpected arguments: {' '.join(rest)}", remedy=USAGE)
    budget = count(given, BUDGET, BUDGET_S, least=10)
    wanted = [stage for stage in STAGES if stage.name in parts(given, NAMES)]
    rehearse = REHEARSE.name in given
    out = _folder(given)
    if not rehearse:
        require_gpu()
    return _run(out, wanted, budget, rehearse, fresh=FRESH.name in given)


def _run(out: Path, wanted: Sequence[Stage], budget: float, rehearse: bool, *, fresh: bool) -> int:
    """Hands over to a process that has not touched the GPU, with the environment that stages need."""
    names = ",".join(stage.name for stage in wanted)
    words = [str(out), names, str(budget), *(["rehearse"] if rehearse else []), *(["fresh"] if fresh else [])]
    return subprocess.run(
        [sys.executable, "-m", "llmcore_tools.gpu.check_run", *words], env=environment(rehearse), check=False
    ).returncode


def _folder(given: Mapping[str, str]) -> Path:
    if OUT.name not in given:
        raise ConfigError("where to?", remedy=USAGE)
    out = Path(given[OUT.name]).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}", remedy="name a folder that can be made") from error
    return out


def require_gpu() -> None:
    """Raises :class:`ConfigError` where torch sees no GPU; torch is imported only where there may be one."""
    reason = "this machine has no GPU, or no driver for it"
    if may_have_gpu():
        import torch

        if torch.cuda.device_count():
            return
        reason = "torch sees no GPU: its build or the driver does not fit"
    raise ConfigError(f"gpu-check: {reason}", remedy="--rehearse plays every stage on the CPU")

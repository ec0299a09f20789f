"""``llmcore bench against llama.cpp``: another engine on the same file, in turns with ours, and the ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcore.cli.model import load, model_as_setting
from llmcore.cli.settings import run_with_settings
from llmcore.config.arguments import Flag
from llmcore.config.command import Command, Job
from llmcore.errors import ConfigError, near
from llmcore_tools.bench import machine, options, roofline, workloads
from llmcore_tools.bench.llama_cpp import LlamaCpp, executable, extra_arguments
from llmcore_tools.bench.measure import Ratio, Series, in_turns
from llmcore_tools.bench.report import Report, Table, show
from llmcore_tools.bench.trials import KINDS, Lengths, Trial, trials

if TYPE_CHECKING:
    from llmcore.llm import LLM

PEERS = ("llama.cpp",)
BINARY = Flag("--binary", "the llama-bench program", "FILE")
BATCHED_BINARY = Flag("--batched-binary", "the llama-batched-bench program: batched decode is compared too", "FILE")
PEER_ARGS = Flag("--peer-args", "more arguments for these programs, quoted as one", "TEXT")
MODEL = Flag("--model", "the GGUF file, as model=FILE", "FILE")
COMMAND = Command(
    "llmcore bench against llama.cpp",
    "measure llama.cpp in turns with llmcore on the same file, and print the ratios",
    (BINARY, BATCHED_BINARY, PEER_ARGS, MODEL, *options.LENGTHS, options.REPEATS, options.ONLY, *options.OUTPUT),
)


def main(argv: Sequence[str]) -> int:
    """Compares for each job; returns the exit code."""
    peer, *rest = argv or [""]
    if peer not in PEERS and not peer.startswith("-"):
        what = f"there is no peer {peer!r}" if peer else "against what?"
        raise ConfigError(what, remedy=f"write `llmcore bench against llama.cpp …`; {near(peer, PEERS)}")
    return run_with_settings(COMMAND, model_as_setting(_model_as_setting(rest if peer in PEERS else argv)), run)


def _model_as_setting(argv: Sequence[str]) -> list[str]:
    """``--model FILE``, as other programs have it, as the setting that it is here."""
    found: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if argument == MODEL.name:
            following = next(arguments, None)
            if following is None:
                raise ConfigError(f"{MODEL.name} needs a value", remedy=f"write {MODEL.name} {MODEL.metavar}")
            found.append(f"model={following}")
        else:
            found.append(
                argument.replace(f"{MODEL.name}=", "model=", 1) if argument.startswith("--model=") else argument
            )
    return found


def run(job: Job) -> int:
    """One comparison."""
    given = job.given
    options.check_output(given)
    chosen = options.parts(given, KINDS)
    repeats = options.count(given, options.REPEATS, 7)
    every = trials(Lengths.of(given, chosen))
    if BINARY.name not in given:
        raise ConfigError("which llama-bench?", remedy=f"write {BINARY.name} {BINARY.metavar}")
    programs = {flag: executable(given[flag], flag) for flag in (BINARY.name, BATCHED_BINARY.name) if flag in given}
    extra = extra_arguments(given.get(PEER_ARGS.name, ""))
    llm = load(workloads.fitted(job.config, [trial.work for trial in every]))
    try:
        check_gguf(llm)
        peer = LlamaCpp(programs[BINARY.name], llm.path, llm.threads, programs.get(BATCHED_BINARY.name), extra)
        compared = [trial for trial in every if peer.can(trial)]
        workloads.check_fits(llm, [trial.work for trial in compared])
        about = peer.describe()
        found = ratios(llm, peer, compared, repeats, job.config.seed or 0)
        measured_on = machine.facts(llm, llm.threads, roofline.machine_state(llm.threads, machine.weight_bytes(llm)))
    finally:
        llm.close()
    left_out = [trial.name for trial in every if trial not in compared]
    results = {
        "repeats": repeats,
        "peer": {"name": "llama.cpp", **about},
        "compared": [{**_described(trial), **ratio.as_json()} for trial, ratio in found.items()],
        "left_out": left_out,
    }
    show(Report("against", measured_on, results, [ratio_table(found, repeats, about, left_out)]), given)
    return 0


def check_gguf(llm: LLM) -> None:
    """llama.cpp reads nothing else; raises :class:`ConfigError`."""
    if llm.checkpoint.format != "gguf" or not Path(llm.path).is_file():
        raise ConfigError(
            f"{llm.path} is no GGUF file, and llama.cpp reads nothing else", remedy="give model=FILE.gguf"
        )


def _described(trial: Trial) -> dict[str, Any]:
    described = trial.as_json(Series((1.0,)))
    del described["tokens_per_s"]
    return described


def ratios(llm: LLM, peer: LlamaCpp, every: Sequence[Trial], repeats: int, seed: int) -> dict[Trial, Ratio]:
    """Every trial by both, ours and theirs in turns: A B A B. The first of ours does not count; theirs has its own."""
    found = {}
    for trial in every:
        workloads.run(llm, trial.work, seed)

        def ours(trial: Trial = trial) -> float:
            return trial.rate([workloads.run(llm, trial.work, seed)]).median

        def theirs(trial: Trial = trial) -> float:
            return peer.sample(trial)

        taken = in_turns({"ours": ours, "theirs": theirs}, repeats)
        found[trial] = Ratio(Series(tuple(taken["ours"])), Series(tuple(taken["theirs"])))
    return found


def ratio_table(found: Mapping[Trial, Ratio], repeats: int, about: Mapping[str, Any], left_out: Sequence[str]) -> Table:
    """Tokens per second of both, and how many times as many ours are."""
    rows = [(trial.name, str(ratio.ours), str(ratio.theirs), str(ratio)) for trial, ratio in found.items()]
    build = f" (build {about['build_commit']})" if "build_commit" in about else ""
    note = (
        f"Tokens per second, median (min–max) of {repeats} samples taken in turns; ratio of the medians (lowest–\n"
        f"highest ratio of a pair). llama.cpp{build} chooses no tokens and makes no text; llmcore does both."
    )
    if left_out:
        note += f"\nLeft out: {', '.join(left_out)}: {BATCHED_BINARY.name} was not given."
    return Table("llmcore against llama.cpp", ("test", "llmcore", "llama.cpp", "ratio"), tuple(rows), note)

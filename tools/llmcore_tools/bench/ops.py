"""``llmcore bench ops``: where a step's time goes, op by op, and how near each comes to what the machine allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmcore.cli.model import load, model_as_setting
from llmcore.cli.settings import run_with_settings
from llmcore.config.arguments import Flag
from llmcore.config.command import Command, Job
from llmcore_tools.bench import kernels, machine, options, plot, roofline
from llmcore_tools.bench.measure import figure
from llmcore_tools.bench.report import Report, Table, show
from llmcore_tools.bench.roofline import Roofline
from llmcore_tools.bench.steps import Anatomy, OpRow, Step, anatomy

NEW = Flag("--tokens", "new tokens of each sequence in the step (1, a decode step, by default)", "N")
BATCH = Flag("--batch", "sequences in the step (1 by default)", "N")
DEPTH = Flag("--depth", "tokens in the cache of each (128 by default)", "N")
COMMAND = Command(
    "llmcore bench ops",
    "time every op of a step, beside the roofline measured on the spot",
    (NEW, BATCH, DEPTH, *kernels.FLAGS, options.REPEATS, options.PLOT, *options.OUTPUT),
)


def main(argv: Sequence[str]) -> int:
    """Takes a step of each job's model apart; returns the exit code."""
    return run_with_settings(COMMAND, model_as_setting(argv), run)


def run(job: Job) -> int:
    """One model."""
    given = job.given
    options.check_output(given)
    picture = plot.check_target(given[options.PLOT.name]) if options.PLOT.name in given else None
    repeats = options.count(given, options.REPEATS, 7)
    step = Step(options.count(given, NEW, 1), options.count(given, BATCH, 1), options.count(given, DEPTH, 128, least=0))
    if any(flag.name in given for flag in kernels.FLAGS):
        return kernels.run(job, step, repeats)
    engine = replace(job.config.engine, max_seqs=max(job.config.engine.max_seqs, step.batch))
    llm = load(replace(job.config, engine=engine))
    try:
        found = anatomy(llm, step, repeats, job.config.seed or 0)
        limits, measured = roofline.measure(llm.threads, weight_bytes(found))
        state = roofline.machine_state(llm.threads, weight_bytes(found))
        measured_on = machine.facts(llm, llm.threads, state)
    finally:
        llm.close()
    if picture is not None:
        plot.draw(picture, f"{measured_on['model']['file']}: a step of {step}", found.rows, limits)
    results = as_json(step, repeats, found, limits) | {"roofline": measured}
    tables = [op_table(step, found, limits), roof_table(measured)]
    show(Report("ops", measured_on, results, tables), given)
    return 0


def weight_bytes(found: Anatomy) -> int:
    """What a step reads."""
    return int(sum(row.cost.reads for row in found.rows))


def as_json(step: Step, repeats: int, found: Anatomy, limits: Roofline) -> dict[str, Any]:
    """The step as plain data."""
    return {
        "repeats": repeats,
        "step": {"tokens": step.new, "batch": step.batch, "depth": step.depth},
        "step_s": found.step_s.as_json(),
        "program_s": found.program_s.as_json(),
        "start_s": found.start_s,
        "ops": [
            {
                "op": row.op,
                "node": row.path,
                "backend": row.backend,
                "kernel": row.kernel,
                "formats": list(row.formats),
                "arithmetic": row.kind,
                "dims": dict(row.dims),
                "calls": row.calls,
                "bytes": row.cost.nbytes,
                "operations": row.cost.operations,
                "seconds": row.seconds.as_json(),
                "of_roofline": row.share_of(limits),
            }
            for row in found.rows
        ],
    }


def op_table(step: Step, found: Anatomy, limits: Roofline) -> Table:
    """A row for each op, the slowest first."""
    total = sum(row.seconds.median for row in found.rows)
    rows = [
        _cells(row, total, found.start_s, limits) for row in sorted(found.rows, key=lambda row: -row.seconds.median)
    ]
    nbytes, operations = (sum(getattr(row.cost, name) for row in found.rows) for name in ("nbytes", "operations"))
    calls = str(sum(row.calls for row in found.rows))
    least = sum(row.share_of(limits) * row.seconds.median for row in found.rows)
    rates = (figure(nbytes / total / 1e9), figure(operations / total / 1e9))
    rows.append(("sum", "", "", "", calls, "", figure(total * 1e6), "100", *rates, figure(least / total * 100)))
    outside = found.step_s.median - found.program_s.median
    head = ("op", "node", "weights", "backend", "calls", "µs each", "µs all", "share %", "GB/s", "GFLOPS", "roofline %")
    whole, start = figure(found.step_s.median * 1e6), figure(found.start_s * 1e6)
    note = (
        f"A step of {step}: {whole} µs, of which {figure(max(outside, 0) * 1e6)} outside of the program.\n"
        f"Rows run one at a time. The {start} µs that it takes to start one are taken off; where less than that is\n"
        "left, there are no rates. Bytes and operations are the op's own, whatever the kernel does. Roofline %: the\n"
        "least time that they could take, by the bandwidth over as many bytes as the step reads, over the time taken;\n"
        "what lies in a cache can exceed 100."
    )
    return Table("Ops of a step", head, tuple(rows), note)


def _cells(row: OpRow, total: float, start_s: float, limits: Roofline) -> tuple[str, ...]:
    seconds = row.seconds.median
    rates = (row.cost.nbytes / seconds / 1e9, row.cost.operations / seconds / 1e9, row.share_of(limits) * 100)
    certain = seconds / row.calls > start_s
    return (
        row.op,
        row.path.removeprefix("model."),
        "+".join(dict.fromkeys(row.formats)),
        row.backend,
        str(row.calls),
        figure(seconds / row.calls * 1e6),
        figure(seconds * 1e6),
        figure(seconds / total * 100),
        *(figure(rate) if certain else "" for rate in rates),
    )


def roof_table(measured: dict[str, Any]) -> Table:
    """What the machine allows."""
    reads = [
        (f"read {record['bytes'] / 2**20:.0f} MiB", str(record["threads"]), figure(record["gb_per_s"]), "GB/s")
        for record in measured["read"]
    ]
    computes = [
        (f"{record['kind']} multiply and add", str(record["threads"]), figure(record["gops_per_s"]), "GOPS")
        for record in measured["compute"]
    ]
    return Table("The roofline, measured just now", ("what", "threads", "rate", "unit"), (*reads, *computes))

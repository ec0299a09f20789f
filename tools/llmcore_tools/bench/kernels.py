"""``llmcore bench ops --backend X --against Y``: two backends side by side, op by op, at the contract's own sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from llmcore import ops
from llmcore.cli.model import load
from llmcore.config.arguments import Flag
from llmcore.config.command import Job
from llmcore.dims import extent
from llmcore.engine.load import usable_threads
from llmcore.errors import ConfigError, RegistryError, near
from llmcore.ops import Case, OpSpec
from llmcore.ops.cases import Inputs, Ragged, indices, paged_slots
from llmcore.plugins import plugins
from llmcore.testing.operands import fits
from llmcore.weights.formats import FORMATS
from llmcore_tools.bench import machine, roofline
from llmcore_tools.bench.measure import Ratio, Series, figure, in_turns
from llmcore_tools.bench.report import Report, Table, show
from llmcore_tools.bench.single import Single, Subject, single
from llmcore_tools.bench.steps import HEAD, Step

if TYPE_CHECKING:
    from llmcore.graph.graph import Node
    from llmcore.llm import LLM
    from llmcore.native.pool import WorkerPool
    from llmcore.ops import OpSpec

BACKEND = Flag("--backend", "compare this backend's kernels …", "NAME")
AGAINST = Flag("--against", "… with this one's, each op by itself", "NAME")
OPS = Flag("--ops", "of these ops alone", "OP,OP")
SHAPES = Flag("--shapes", "contract (the sizes of its own cases, the default), or model (those of a step)", "WHICH")
FORMAT = Flag("--formats", "contract: weights in these formats (F32,Q8_0 by default)", "F,F")
STATE_BYTES = 64 << 20  # more than caches hold, for the machine's state
FLAGS = (BACKEND, AGAINST, OPS, SHAPES, FORMAT)


@dataclass(frozen=True)
class Compared:
    """One op on both backends; where one of them cannot run it, ``lacks`` says why and nothing was measured."""

    subject: Subject
    ratio: Ratio | None
    lacks: str = ""


def run(job: Job, step: Step, repeats: int) -> int:
    """Compares two backends; prints the report."""
    given = job.given
    for flag in (BACKEND, AGAINST):
        if flag.name not in given:
            raise ConfigError(f"{flag.name} is missing", remedy=f"write {BACKEND.name} X {AGAINST.name} Y")
        plugins().backend(given[flag.name])
    names = (given[BACKEND.name], given[AGAINST.name])
    if names[0] == names[1]:
        raise ConfigError(f"{names[0]} against itself?", remedy=near("", plugins().backends))
    shapes = _one_of(given, SHAPES, ("contract", "model"))
    chosen = _several(given, OPS, ops.NAMES, ops.NAMES)
    threads = usable_threads(job.config.threads)
    state = roofline.machine_state(threads, STATE_BYTES)
    if shapes == "model":
        llm = load(job.config)
        try:
            subjects = list(of_model(llm, step, chosen))
            measured_on = machine.facts(llm, threads, state)
        finally:
            llm.close()
    else:
        formats = _several(given, FORMAT, [name for name, form in FORMATS.items() if form.decode], ("F32", "Q8_0"))
        subjects = list(of_contract(chosen, formats))
        measured_on = machine.facts(None, threads, state)
    with roofline.pool_of(threads) as pool:
        found = [compared(subject, names, lambda: pool, threads, repeats) for subject in subjects]
    results = {"repeats": repeats, "backend": names[0], "against": names[1], "ops": [as_json(each) for each in found]}
    show(Report("kernels", measured_on, results, [table(found, names, repeats)]), given)
    return 0


def _one_of(given: Mapping[str, str], flag: Flag, known: Sequence[str]) -> str:
    value = given.get(flag.name, known[0])
    if value not in known:
        raise ConfigError(f"{flag.name} is {value!r}", remedy=near(value, known))
    return value


def _several(given: Mapping[str, str], flag: Flag, known: Sequence[str], default: Sequence[str]) -> tuple[str, ...]:
    names = [name.strip() for name in given[flag.name].split(",")] if flag.name in given else default
    for name in names:
        if name not in known:
            raise ConfigError(f"{flag.name}: there is no {name!r}", remedy=near(name, known))
    return tuple(names)


def of_contract(names: Sequence[str], formats: Sequence[str]) -> Iterator[Subject]:
    """The conformance cases of ops but empty ones; where there are weights, in each of ``formats`` whose blocks fit."""
    for op in map(ops.get, names):
        weights = [param.name for param in op.of("weight") if param.type == "any"]
        for case in op.cases() if op.cases else ():
            if 0 in (case.dims[letter] for param in op.of("input", "output") for letter in param.dims):
                continue
            for name in formats if weights else ("",):
                chosen = dict.fromkeys(weights, name)
                if fits(op, case, chosen):
                    yield Subject(op, case, tuple(chosen.items()))


def of_model(llm: LLM, step: Step, names: Sequence[str]) -> Iterator[Subject]:
    """The ops of a model's step, each size once."""
    seen = set()
    for node, _ in llm.runner.bound(HEAD, step.tokens):
        subject = _of_node(llm, step, node)
        key = (subject.op.name, subject.sizes, subject.formats)
        if node.op.name in names and key not in seen:
            seen.add(key)
            yield subject


def _of_node(llm: LLM, step: Step, node: Node) -> Subject:
    sizes = {"T": step.tokens, "S": step.batch, "R": step.batch}
    dims = {letter: extent(dim, sizes) for letter, dim in node.dims.items()}
    inputs = _index_inputs(node.op, step, node.attrs)
    if isinstance(inputs, Ragged):
        dims["B"] = inputs.table_width
    present = tuple(param.name for param in node.op.params if param.optional and param.name in node.args)
    stored = {name: value.name for name, value in node.args.items() if value.dtype == "any"}
    formats = tuple((name, llm.runner.weights.format(key)) for name, key in stored.items())
    return Subject(node.op, Case(dims, node.attrs, present, inputs), formats)


def _index_inputs(op: OpSpec, step: Step, attrs: Mapping[str, Any]) -> Inputs | None:
    """Makes the index parameters of an op as a step has them."""
    if op.name == "attention":
        return Ragged((step.new,) * step.batch, (step.depth + step.new,) * step.batch, attrs["page_size"])
    below = {"positions": "P", "rows": "T", "ids": "V"}
    counts = {param.name: param.dims[0] for param in op.of("input") if param.type == "i32"}
    if not counts:
        return None

    def make(dims: Mapping[str, int], rng: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, letter in counts.items():
            if name == "slots":
                found[name] = paged_slots(dims[letter], attrs["page_size"], rng)
            else:
                found |= indices(name, letter, below[name])(dims, rng)
        return found

    return make


def compared(
    subject: Subject, names: tuple[str, str], pool: Callable[[], WorkerPool], threads: int, repeats: int
) -> Compared:
    """Times ``subject`` on both backends in turns."""
    made: dict[str, Single] = {}
    for name in names:
        try:
            made[name] = single(subject, name, pool, threads)
        except RegistryError as error:
            return Compared(subject, None, error.message)
    taken = in_turns({name: partial(one.seconds, one.runs()) for name, one in made.items()}, repeats)
    return Compared(subject, Ratio(Series(tuple(taken[names[0]])), Series(tuple(taken[names[1]]))))


def as_json(found: Compared) -> dict[str, Any]:
    """One op as plain data: seconds of ours (``--backend``) and theirs (``--against``)."""
    case = found.subject.case
    described = {
        "op": found.subject.op.name,
        "dims": dict(case.dims),
        "attrs": dict(case.attrs),
        "present": list(case.present),
        "formats": dict(found.subject.formats),
    }
    if found.ratio is None:
        return {**described, "seconds": None, "lacks": found.lacks}
    return {**described, "seconds": found.ratio.as_json()}


def table(found: Sequence[Compared], names: tuple[str, str], repeats: int) -> Table:
    """Microseconds of both, and how many times as fast the first one is."""
    rows, lacking = [], 0
    for each in found:
        if each.ratio is None:
            lacking += 1
            continue
        ours, theirs = each.ratio.ours, each.ratio.theirs
        micro = [figure(series.median * 1e6) for series in (ours, theirs)]
        speed = figure(theirs.median / ours.median)
        rows.append((each.subject.op.name, each.subject.sizes, each.subject.weights, *micro, speed))
    note = (
        f"Microseconds of one call, the median of {repeats} samples in turns. Starting it from Python is part of it;\n"
        "what it reads lies in the cache as far as it fits. A fused op that a backend does not offer runs as its parts."
    )
    if lacking:
        note += f"\n{lacking} more that one of the two cannot run: --json says why."
    head = ("op", "sizes", "weights", f"{names[0]} µs", f"{names[1]} µs", f"{names[0]} times as fast")
    return Table(f"{names[0]} against {names[1]}", head, tuple(rows), note)

"""``llmcore bench serve``: load on any OpenAI-compatible HTTP server, ours or another's, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from llmcore.config.arguments import Flag, extract, usage
from llmcore.errors import ConfigError
from llmcore_tools.bench import machine, options, plot, serve_plot, serve_report
from llmcore_tools.bench.measure import Ratio, Series, in_turns
from llmcore_tools.bench.report import as_markdown, as_text, json_target, write_json
from llmcore_tools.load.metrics import Summary
from llmcore_tools.load.plan import FLAGS, JSON_FILE, PLOT, Plan, plan
from llmcore_tools.load.run import LoadError, Run, load, look

HELP = Flag("--help", "show this")
USAGE = "usage: llmcore bench serve --url http://HOST:PORT [flag …]"


def main(argv: Sequence[str]) -> int:
    """Sends the load; returns the exit code: 1 where not one request was answered."""
    given, rest = extract(argv, (*FLAGS, HELP))
    if HELP.name in given:
        print(f"{USAGE}\n\n{usage(FLAGS)}")
        return 0
    if rest:
        raise ConfigError(f"bench serve loads no model: {rest[0]!r} is none of its flags", remedy=USAGE)
    asked = plan(given)
    picture = plot.check_target(given[PLOT.name]) if PLOT.name in given else None
    file = json_target(given, JSON_FILE)
    measured_on = machine.facts(None, None, None)
    if asked.against is None:
        run = measure(asked)
        report = serve_report.single(measured_on, asked, run)
        answered = run.summary.completed > 0
        if picture is not None:
            serve_plot.draw(picture, f"{asked.target}, {asked.pace}", run.records)
    else:
        runs = compare(asked)
        report = serve_report.against(measured_on, asked, runs, ratios(runs))
        answered = True
    print(as_markdown(report) if options.MARKDOWN.name in given else as_text(report))
    if file is not None:
        write_json(file, report)
    return 0 if answered else 1


def measure(asked: Plan) -> Run:
    """The load on one server."""
    return load(asked, look(asked, asked.target))


def compare(asked: Plan) -> dict[str, list[Run]]:
    """Both servers in turns, A B A B; each run has prompts of its own, the same for both."""
    assert asked.against is not None
    servers = {"ours": look(asked, asked.target), "theirs": look(asked, asked.against)}
    numbers = dict.fromkeys(servers, 0)

    def once(name: str) -> Run:
        number = numbers[name]
        numbers[name] += 1
        return load(asked, servers[name], number, warm=number == 0)

    return in_turns({name: partial(once, name) for name in servers}, asked.repeats)


def ratios(runs: Mapping[str, Sequence[Run]]) -> dict[str, Ratio]:
    """Output tokens per second, TTFT and ITL of the first server over the second's.

    Raises:
        LoadError: a run has no figure to compare: nothing was answered, or not in pieces.
    """
    found: dict[str, Ratio] = {}
    for name, figure in serve_report.COMPARED.items():
        both = [[figure(run.summary) for run in runs[side]] for side in ("ours", "theirs")]
        if all(all(side) for side in both):
            found[name] = Ratio(*(Series(tuple(value for value in side if value)) for side in both))
    if not found:
        raise LoadError(
            f"there is nothing to compare: {_outcomes(runs)}", remedy="see what one of them says without --against"
        )
    return found


def _outcomes(runs: Mapping[str, Sequence[Run]]) -> str:
    """Errors of both, in a few words."""
    told = {side: [run.summary for run in found] for side, found in runs.items()}
    return "; ".join(f"{side}: {_failed(summaries)}" for side, summaries in told.items())


def _failed(summaries: Sequence[Summary]) -> str:
    return ", ".join(f"{s.completed} of {s.requests} answered {dict(s.errors) or ''}".strip() for s in summaries)

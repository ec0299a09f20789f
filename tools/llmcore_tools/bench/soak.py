"""``llmcore bench soak``: many clients on a server of its own for long, and whether everything adds up afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmcore.config.arguments import Flag, extract, usage
from llmcore.errors import ConfigError
from llmcore_tools.bench import machine, options, soak_report
from llmcore_tools.bench.report import as_markdown, as_text, json_target, write_json
from llmcore_tools.load import accounts
from llmcore_tools.load.child_server import ChildServer, check_system
from llmcore_tools.load.mixture import Mixture
from llmcore_tools.load.plan import real
from llmcore_tools.load.prompts import Span
from llmcore_tools.load.soak import Plan, soak

CLIENTS = Flag("--clients", "at a time (256 by default)", "N")
REQUESTS = Flag("--requests", "of all clients (10000 by default)", "N")
DISCONNECT = Flag("--disconnect", "share of the requests whose clients break off, at any moment (0.1)", "FRACTION")
WORDS = Flag("--prompt-words", "words of a prompt; a few have 400, as far as the context allows (4..40)", "A..B")
OUTPUT = Flag("--output-tokens", "tokens of an answer, at most (4..24)", "A..B")
INTERVAL = Flag("--health-interval", "milliseconds between two questions for the server's health (50)", "MS")
TIMEOUT = Flag("--timeout", "seconds that one request may take (600)", "S")
SEED = Flag("--seed", "of everything that is drawn (0)", "N")
JSON_FILE = Flag("--json", "write what was found to a file", "FILE")
HELP = Flag("--help", "show this")
FLAGS = (CLIENTS, REQUESTS, DISCONNECT, WORDS, OUTPUT, INTERVAL, TIMEOUT, SEED, options.MARKDOWN, JSON_FILE)
USAGE = "usage: llmcore bench soak [flag …] [setting of llmcore serve …]"
KV_PAGES = 64  # few enough that answers are preempted
LEAST_ROOM = 16
LEAST_CONTEXT = 768  # tokens: the longest prompts must fit


def main(argv: Sequence[str]) -> int:
    """Soaks a server; returns the exit code: 1 where something does not hold."""
    given, settings = extract(argv, (*FLAGS, HELP))
    if HELP.name in given:
        print(f"{USAGE}\n\n{usage(FLAGS)}")
        return 0
    check_system()
    file = json_target(given, JSON_FILE)
    asked = plan(given, settings)
    settings = served(settings, asked.room)
    measured_on = machine.facts(None, None, None)
    with ChildServer(settings) as server:
        asked = fitted(asked, *server.model())
        found = soak(asked, server)
    made = accounts.checks(asked, found)
    report = soak_report.report(measured_on, settings, asked, found, made)
    print(as_markdown(report) if options.MARKDOWN.name in given else as_text(report))
    if file is not None:
        write_json(file, report)
    return 0 if all(check.ok for check in made) else 1


def plan(given: Mapping[str, str], settings: Sequence[str]) -> Plan:
    """What the flags ask for, of a model that is not known yet; raises :class:`ConfigError`."""
    clients = options.count(given, CLIENTS, 256)
    disconnects = real(given, DISCONNECT, 0.0, 1.0) if DISCONNECT.name in given else 0.1
    return Plan(
        Mixture("", 0, options.span(given, WORDS, Span(4, 40)), options.span(given, OUTPUT, Span(4, 24)), disconnects),
        clients,
        options.count(given, REQUESTS, 10_000),
        _room(settings, clients),
        options.count(given, SEED, 0, least=0),
        real(given, INTERVAL, 1, 1e6) / 1e3 if INTERVAL.name in given else 0.05,
        real(given, TIMEOUT, 0.001, 1e6) if TIMEOUT.name in given else 600.0,
    )


def _room(settings: Sequence[str], clients: int) -> int:
    """The queue's bound: an eighth more than there are clients, so that calls for several answers meet it at times."""
    name = "server.max_waiting="
    asked = [setting.removeprefix(name) for setting in settings if setting.startswith(name)]
    if not asked:
        return max(clients + clients // 8, LEAST_ROOM)
    if not asked[-1].isdecimal() or int(asked[-1]) < LEAST_ROOM:
        raise ConfigError(f"{name}{asked[-1]}: some calls ask for 3 answers", remedy=f"give {LEAST_ROOM} or more")
    return int(asked[-1])


def served(settings: Sequence[str], room: int) -> list[str]:
    """The settings of ``llmcore serve``: ours where the command line has none."""
    ours = {"server.port": 0, "server.max_waiting": room, "engine.kv_pages": KV_PAGES}
    given = {setting.partition("=")[0] for setting in settings}
    return [*settings, *(f"{name}={value}" for name, value in ours.items() if name not in given)]


def fitted(asked: Plan, model: str, context: int) -> Plan:
    """``asked`` for the model that is served; raises :class:`ConfigError` where prompts would not fit."""
    if context < LEAST_CONTEXT + asked.mixture.output.high:
        raise ConfigError(
            f"{model} takes {context} tokens, prompt and answer together",
            remedy=f"give it {LEAST_CONTEXT + asked.mixture.output.high}: engine.kv_pages, engine.max_context",
        )
    return replace(asked, mixture=replace(asked.mixture, model=model, context=context))

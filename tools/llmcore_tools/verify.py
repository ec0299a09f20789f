"""``llmcore verify``: does a model compute what it should? Block by block, against transformers, another backend, or
itself under other settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from llmcore.cli.console import table
from llmcore.cli.model import load, model_as_setting
from llmcore.cli.settings import run_with_settings
from llmcore.config.arguments import JSON, PROMPT, Flag
from llmcore.config.checks import check
from llmcore.config.command import FALLBACK, Command, Job
from llmcore.config.direct import changed
from llmcore.config.prompts import read_prompt
from llmcore.config.schema import BackendConfig, Config, ModelConfig
from llmcore.errors import ConfigError
from llmcore.verify import Report, Trace, common, compare, transformers_trace

if TYPE_CHECKING:
    from llmcore.llm import LLM

AGAINST = Flag("--against", "transformers (in float32, the default) or the name of a backend", "NAME")
SETTINGS = Flag(
    "--against-settings", "the model itself with other settings, such as engine.kv_dtype=float32", "KEY=VALUE,…"
)
TOKENS = Flag("--tokens", "compare at most so many tokens of the text (64 by default)", "N")
TOLERANCE = Flag("--tolerance", "greatest error allowed, as a share of the reference's size (0.001 by default)", "X")
COMMAND = Command(
    "llmcore verify",
    "compare a model's blocks and logits with transformers, another backend or other settings (compute=exact unless "
    "you say auto)",
    (AGAINST, SETTINGS, TOKENS, TOLERANCE, *PROMPT, JSON),
)
TRANSFORMERS = "transformers"
DIVERGED = 1
TEXT = """The sea covers more than two thirds of the Earth. Its water is never still: winds raise waves, the Moon and \
the Sun draw the tides, and warm currents carry heat from the tropics towards the poles. In 1872 the ship Challenger \
left Portsmouth to sound its depths; after 127,580 km and 362 stations she came home with 4,717 new species."""


def main(argv: Sequence[str]) -> int:
    """Verifies the model of each job; returns 0 where nothing diverged."""
    asked = model_as_setting(argv)
    if not any(argument.startswith(("compute=", "+compute=", "++compute=")) for argument in asked):
        asked = ["compute=exact", *asked]  # is it right? How far quantized activations lead away is another question
    return run_with_settings(COMMAND, asked, run)


def run(job: Job) -> int:
    """One comparison."""
    against = job.given.get("--against", TRANSFORMERS)
    other = _other_settings(job.config, job.given)
    tolerance = _number(job.given, "--tolerance", 1e-3)
    limit = int(_number(job.given, "--tokens", 64))
    asked = "--prompt" in job.given or "--prompt-file" in job.given
    text = read_prompt(job.given, None) if asked else TEXT
    llm = load(job.config, taps=True)
    try:
        if other is None:
            _check_other(llm, job.config, against)
        ids = llm.encode(text)[:limit]
        path = llm.path
        found: Trace = llm.trace(ids)
    finally:
        llm.close()
    reference: Trace
    if other is not None:
        against, reference = job.given[SETTINGS.name], _traced(other, str(path), ids)
    elif against == TRANSFORMERS:
        reference = transformers_trace(path, ids)
    else:
        reference = _other_backend(job.config, str(path), against, ids)
    report = compare(*common(found, reference), ids, tolerance)
    shown = as_json(job.config, against, report) if "--json" in job.given else as_text(job.config, against, report)
    print(shown)
    return 0 if report.first_divergent is None else DIVERGED


def _check_other(llm: LLM, config: Config, against: str) -> None:
    """Refuses to compare a backend with itself: nothing could differ, so agreement would say nothing."""
    bound = {row.backend for row in llm.explain().rows}
    if not config.backend.ops and against in bound and bound <= {against, FALLBACK}:
        raise ConfigError(
            f"the model is run by {against} already: there is nothing to compare",
            remedy=f"give another backend=NAME, or --against {TRANSFORMERS}",
        )


def _number(given: Mapping[str, str], name: str, default: float) -> float:
    """A positive number from a flag."""
    text = given.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = 0.0
    if not (isfinite(value) and value > 0) or (name == "--tokens" and value != int(value)):
        raise ConfigError(f"{name} is {text!r}", remedy=f"it must be a positive number, like {default:g}")
    return value


def _other_backend(config: Config, path: str, backend: str, ids: Sequence[int]) -> Trace:
    """The trace of the same model by ``backend`` alone, torch filling in."""
    order = list(dict.fromkeys((backend, FALLBACK)))
    return _traced(replace(config, backend=BackendConfig(backend, order)), path, ids)


def _other_settings(config: Config, given: Mapping[str, str]) -> Config | None:
    """What ``--against-settings`` asks for, or None.

    Raises:
        ConfigError: it is no settings, changes nothing or the model, or ``--against`` is there too.
    """
    text = given.get(SETTINGS.name)
    if text is None:
        return None
    if AGAINST.name in given:
        raise ConfigError(f"{AGAINST.name} and {SETTINGS.name} exclude each other", remedy="give one of them")
    other = changed(config, [setting.strip() for setting in text.split(",")])
    check(other)
    if other == config or other.model != config.model:
        what = "changes nothing" if other == config else "names another model"
        raise ConfigError(f"{SETTINGS.name} {text} {what}", remedy="give a setting that is another one for the model")
    return other


def _traced(config: Config, path: str, ids: Sequence[int]) -> Trace:
    """The trace of the model's file under other settings."""
    model = ModelConfig(path, None, config.model.ignore_config_keys)
    llm = load(replace(config, model=model), taps=True)
    try:
        return llm.trace(ids)
    finally:
        llm.close()


def as_json(config: Config, against: str, report: Report) -> str:
    """A report as one JSON object."""
    values: dict[str, Any] = {
        "model": config.model.ref,
        "backend": config.backend.name,
        "against": against,
        **asdict(report),
        "perplexity_change": report.perplexity_change,
    }
    return json.dumps(values, ensure_ascii=False, indent=2)


def as_text(config: Config, against: str, report: Report) -> str:
    """A report for people: a line for each block, and the verdict."""
    rows = [
        (
            difference.name,
            f"{difference.max_error:.3g}",
            f"{difference.mean_error:.3g}",
            f"{difference.scale:.3g}",
            "◀ first to diverge" if difference.name == report.first_divergent else "",
        )
        for difference in report.layers
    ]
    verdict = (
        f"nothing is further apart than {report.tolerance:g} of its size"
        if report.first_divergent is None
        else f"{report.first_divergent} is further apart than {report.tolerance:g} of its size"
    )
    return "\n".join(
        [
            f"{config.model.ref}: backend {config.backend.name} against {against}, {report.tokens} tokens",
            "",
            table(("block", "max error", "mean error", "size", ""), rows),
            "",
            f"top-1 agreement  {report.top1_agreement:.2%}",
            f"perplexity       {report.perplexity:.4f}, reference {report.reference_perplexity:.4f} "
            f"({report.perplexity_change:+.3%})",
            f"verdict          {verdict}",
        ]
    )

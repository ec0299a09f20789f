"""How the commands use Hydra: as its users know it, but silent, and with errors in our words.

Groups, overrides, ``--cfg``, ``--info``, ``--help``, tab completion and ``-m`` are Hydra's own. What it does unasked is
turned off, mostly by ``infer.yaml``: no output folder, no change of directory, no logging set-up; and a sweep's notes
go to a folder that is removed. Nothing is ever built from a config's ``_target_``: configuration selects what is
installed, by name.
"""

from __future__ import annotations

import os
import warnings
from argparse import Namespace
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.main import get_args_parser
from omegaconf import DictConfig, OmegaConf

from llmcore.config import complaints
from llmcore.config.arguments import VERSION, extract, usage
from llmcore.config.checks import check, check_backends
from llmcore.config.command import FALLBACK, Command, Installed, Job, Report, Task
from llmcore.config.completion import LINE, flags_for, hide_flags
from llmcore.config.quiet import as_command_line, register_scratch, unreported_errors
from llmcore.config.quoting import quoted, uninterpolated
from llmcore.config.references import References
from llmcore.config.schema import Config, keys, make_schema, plain
from llmcore.config.search_path import OWN
from llmcore.errors import ConfigError, LlmcoreError

VERSION_BASE = "1.3"
GROUPS = ("model", "backend", "sampling", "engine")


class _Escape(BaseException):
    """Carries an exception past Hydra, which would report and wrap it."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


@dataclass
class _Runner:
    """What Hydra calls for each job."""

    task: Task
    report: Report
    given: Mapping[str, str]
    keys: Sequence[str]
    backends: Collection[str]
    codes: list[int] = field(default_factory=list)

    def run(self, composed: DictConfig) -> None:
        """Runs one job and keeps its exit code."""
        try:
            self.codes.append(self._run(composed))
        except Exception as error:
            raise _Escape(error) from error

    def _run(self, composed: DictConfig) -> int:
        runtime = HydraConfig.get()
        try:
            config = settings(composed, self.keys)
            check_backends(config, self.backends)
            number = OmegaConf.select(runtime, "job.num", throw_on_missing=False)
            return self.task(Job(config, self.given, tuple(runtime.overrides.task), number))
        except LlmcoreError as error:
            return self.report(error)  # the other jobs of a sweep still run


def settings(composed: DictConfig, known: Sequence[str]) -> Config:
    """A composed config as checked :class:`Config`; raises :class:`ConfigError`."""
    for key in _dotted(OmegaConf.to_container(composed, resolve=False)):
        if key not in known:
            raise complaints.unknown_key(key, known)
    try:
        config = plain(OmegaConf.to_object(composed))
    except Exception as error:
        raise complaints.explained(error, known) from error
    check(config)
    return config


def _dotted(values: Any, prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")


def run(command: Command, argv: Sequence[str], task: Task, installed: Installed, report: Report) -> int:
    """What :func:`llmcore.config.launch.run` does, for any command line."""
    given, rest = extract(argv, (*command.flags, VERSION))
    if VERSION.name in given:
        print(f"llmcore {version('llmcore')}")
        return 0
    if any(argument.startswith("query=") for argument in rest):
        flags = flags_for(os.environ.get(LINE, ""), command.flags)
        if flags is not None:
            print(" ".join(flags))
            return 0
    schema = make_schema(installed.ops)
    known = keys(schema)
    _register(command, schema)
    rest = _prepared(command, rest, known, installed)
    runner = _Runner(task, report, given, known, installed.backends)

    def job(composed: DictConfig) -> None:
        runner.run(composed)

    job.__module__ = command.name.replace(" ", "_")  # what Hydra names the job after
    with ExitStack() as stack:
        register_scratch(stack)
        stack.enter_context(as_command_line([command.name.partition(" ")[0], *rest]))
        stack.enter_context(unreported_errors())
        try:
            hydra.main(version_base=VERSION_BASE, config_path=f"pkg://{OWN}", config_name=command.config)(job)()
        except SystemExit as end:  # --help and its like
            return end.code if isinstance(end.code, int) else 0
        except _Escape as escape:
            raise escape.error from escape.error.__cause__
        except LlmcoreError:
            raise
        except Exception as error:
            raise complaints.explained(error, known) from error
    return max(runner.codes, default=0)


def _prepared(command: Command, rest: Sequence[str], known: Sequence[str], installed: Installed) -> list[str]:
    """The command line for Hydra, checked as far as that goes without composing."""
    parser = get_args_parser()
    parser.error = _refuse
    parsed = parser.parse_intermixed_args(rest)
    if parsed.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun reads a pickle, which could run any code", remedy="give overrides")
    if parsed.shell_completion:
        hide_flags(command.flags)
        _offer(name for name in installed.backends if name not in _options("backend", None))
        return list(rest)
    flags = _without(rest, parsed.overrides)
    models, backends = (_options(group, parsed.config_dir) for group in ("model", "backend"))
    _offer(name for name in installed.backends if name not in backends)
    references = References(models, installed.is_reference, parsed.multirun)
    overrides = references.rewrite(parsed.overrides)
    for name, values in references.stored.items():
        ConfigStore.instance().store(group="model", name=name, node=values, provider="command line")
    changes = complaints.read_overrides(overrides, known)
    for change in changes:
        _check_choice(change)
    if parsed.config_dir or parsed.config_path or any(change.key_or_group == "hydra.searchpath" for change in changes):
        fixed = [text for text, change in zip(overrides, changes, strict=True) if not change.is_sweep_override()]
        _refuse_foreign_targets(parsed.config_name or command.config, fixed, parsed)
    return [*overrides, *flags]  # Hydra's parser takes no flag between two overrides, and --info takes what follows it


def _check_choice(change: Override) -> None:
    """Refuses an override that leaves a group without an option, or a backend's name without what it stands for."""
    key = change.key_or_group
    if key in GROUPS and not change.is_delete() and isinstance(change.value(), int | float | None):
        raise ConfigError(
            f"{change.input_line} names no option of {key}", remedy=f"write {key}=NAME, or leave it out for the default"
        )
    if key == "backend.name":
        raise ConfigError(
            f"{change.input_line}: the name alone chooses nothing",
            remedy="write backend=NAME, which sets its order too; or backend.order=[…]",
        )


def _without(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The flags among ``arguments``: all but the overrides, which are in the same order."""
    left = list(overrides)
    flags = []
    for argument in arguments:
        if left and argument == left[0]:
            left.pop(0)
        else:
            flags.append(argument)
    return flags


def _refuse_foreign_targets(config_name: str, overrides: list[str], flags: Namespace) -> None:
    """Looks at what files from outside of the installed packages compose to, before Hydra builds callbacks from it."""
    path = flags.config_path or f"pkg://{OWN}"
    if path.startswith("pkg://"):
        context = hydra.initialize_config_module(path.removeprefix("pkg://"), version_base=VERSION_BASE)
    else:
        context = hydra.initialize_config_dir(str(Path(path).absolute()), version_base=VERSION_BASE)
    with context, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again when Hydra composes
        if flags.config_dir:
            overrides = [*overrides, f"hydra.searchpath=[{quoted('file://' + str(Path(flags.config_dir).absolute()))}]"]
        try:
            composed = hydra.compose(config_name, overrides, return_hydra_config=True)
        except Exception:
            return  # Hydra fails in the same way in a moment, and that is where it is explained
    complaints.refuse_targets(composed)


def _refuse(message: str) -> NoReturn:
    raise ConfigError(message, remedy="--help and --hydra-help list the flags")


def _options(group: str, config_dir: str | None) -> list[str]:
    """The configs in ``group``."""
    with hydra.initialize_config_module(OWN, version_base=VERSION_BASE):
        options = GlobalHydra.instance().config_loader().get_group_options(group)
    folder = Path(config_dir or os.devnull) / group
    return [*options, *(file.stem for file in folder.glob("*.yaml"))]


def _register(command: Command, schema: type[Config]) -> None:
    """Tells Hydra what is not in files."""
    store = ConfigStore.instance()
    store.store(name="llmcore_schema", node=schema, provider="llmcore")
    store.store(group="hydra/help", name="llmcore", node=_help(command), provider="llmcore")


def _offer(backends: Iterable[str]) -> None:
    """Makes an option ``backend=name`` for backends that bring no config file."""
    for name in backends:
        node = {"name": name, "order": list(dict.fromkeys((name, FALLBACK)))}
        ConfigStore.instance().store(group="backend", name=name, node=node, provider="llmcore")


def _help(command: Command) -> dict[str, str]:
    header = f"{command.name}: {command.summary}\n\nusage: {command.name} [flag …] [setting=value …]\n\n"
    footer = (
        "-m runs once for each of several values (backend=numba,torch seed=1,2); --cfg job shows the settings;\n"
        "--info searchpath where they come from; --hydra-help everything else."
    )
    groups = "Groups (group=option)\n\n$APP_CONFIG_GROUPS\nSettings (key=value)\n\n$CONFIG\n"
    ours = uninterpolated((header + usage(command.flags)).replace("$", "$$"))  # for string.Template, and for OmegaConf
    return {"app_name": command.name, "header": "", "footer": "", "template": f"{ours}\n\n{groups}{footer}\n"}

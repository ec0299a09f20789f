"""The flags that say which kernels' calls are meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmcore.config.arguments import Flag
from llmcore.errors import ConfigError, near
from llmcore.weights.formats import FORMATS
from llmcore_tools.gpu.workload import MODELS, Step, Workload

BY_DEFAULT = Workload()
CHOSEN = Flag("--models", f"whose steps are meant ({', '.join(MODELS)}), all by default", "NAME,NAME")
MATRICES = Flag("--formats", f"of the matrices ({','.join(BY_DEFAULT.formats)} by default)", "NAME,NAME")
DTYPE = Flag("--dtype", "of activations: bfloat16 (the default), float16 or float32", "NAME")
BATCHES = Flag("--batches", "of decode steps (1,8,64 by default)", "N,N")
PREFILL = Flag("--prefill", "tokens of a prefill chunk (2048 by default; 0: none)", "N")
WORKLOAD = (CHOSEN, MATRICES, DTYPE, BATCHES, PREFILL)
COMPUTABLE = tuple(name for name, form in FORMATS.items() if form.decode)


def workload(given: Mapping[str, str]) -> Workload:
    """What the flags ask for."""
    models = names(given, CHOSEN, MODELS, BY_DEFAULT.models)
    formats = names(given, MATRICES, COMPUTABLE, BY_DEFAULT.formats)
    (dtype,) = names(given, DTYPE, ("bfloat16", "float16", "float32"), (BY_DEFAULT.dtype,))
    steps = BY_DEFAULT.steps
    if BATCHES.name in given or PREFILL.name in given:
        batches = [number(text, BATCHES) for text in given.get(BATCHES.name, "1,8,64").split(",")]
        prefill = number(given.get(PREFILL.name, "2048"), PREFILL, least=0)
        steps = (*(Step(n, n) for n in batches), *((Step(prefill, 1),) if prefill else ()))
    return Workload(models, formats, steps=steps, dtype=dtype)


def names(given: Mapping[str, str], flag: Flag, known: Iterable[str], default: tuple[str, ...]) -> tuple[str, ...]:
    """The names that a flag lists; raises :class:`ConfigError` for one that is not known."""
    listed = tuple(given[flag.name].split(",")) if flag.name in given else default
    for name in listed:
        if name not in known:
            raise ConfigError(f"{flag.name}: there is no {name!r}", remedy=near(name, known))
    return listed


def count(given: Mapping[str, str], flag: Flag, default: int) -> int:
    """The number that a flag gives, from 1 on."""
    return number(given[flag.name], flag) if flag.name in given else default


def number(text: str, flag: Flag, least: int = 1) -> int:
    """``text`` as a number from ``least`` on; raises :class:`ConfigError`."""
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise ConfigError(f"{flag.name}: {text!r} is not a number from {least} on")
    return int(text)

"""The processor that native kernels are compiled for: this one, or a plainer one by the environment.

``LLMCORE_CPU`` names an instruction level: ``native`` (the default: all that this processor has), ``avx512``, ``avx2``
or ``generic`` (the base of the architecture). It serves to test, on one machine, the code that others will run.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache

from llmcore.errors import ConfigError, near

SETTING = "LLMCORE_CPU"
AVX2 = frozenset(
    ["sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe"]
)
AVX512 = AVX2 | frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni"])
LEVELS = {"avx512": AVX512, "avx2": AVX2, "generic": frozenset[str]()}
NAMES = {"avx512": "x86-64-v4", "avx2": "x86-64-v3", "generic": "generic"}  # as LLVM names processors


@dataclass(frozen=True)
class Machine:
    """What code is compiled for.

    Attributes:
        cpu: LLVM's name of the processor.
        features: those that it has, by LLVM's names.
        flags: all features as LLVM takes them, ``+avx2,-avx512f``.
        forced: whether it is another one than this process runs on.
    """

    cpu: str
    features: frozenset[str]
    flags: str
    forced: bool = False

    def has(self, *features: str) -> bool:
        """Whether it has all of ``features``."""
        return self.features.issuperset(features)

    @property
    def level(self) -> str:
        """The highest instruction level that it has: ``avx512``, ``avx2`` or ``generic``."""
        return next(level for level, needs in LEVELS.items() if self.features >= needs)


def host() -> Machine:
    """The processor that this process runs on."""
    import llvmlite.binding

    found = llvmlite.binding.get_host_cpu_features()
    has = frozenset(name for name, on in found.items() if on)
    return Machine(llvmlite.binding.get_host_cpu_name(), has, found.flatten())


@cache
def machine() -> Machine:
    """What this process compiles for.

    Raises:
        ConfigError: ``LLMCORE_CPU`` is no level, or one that this processor does not reach.
    """
    wanted = os.environ.get(SETTING, "native").strip().lower() or "native"
    here = host()
    if wanted == "native":
        return here
    if wanted not in LEVELS:
        raise ConfigError(f"{SETTING} is {wanted!r}", remedy=near(wanted, ("native", *LEVELS)))
    lacking = sorted(LEVELS[wanted] - here.features)
    if lacking:
        raise ConfigError(
            f"{SETTING}={wanted}: this processor ({here.cpu}) lacks {', '.join(lacking)}",
            remedy=f"it reaches {here.level}",
        )
    flags = ",".join(f"+{name}" for name in sorted(LEVELS[wanted]))
    return Machine(NAMES[wanted], LEVELS[wanted], flags, forced=True)


def has_half_conversion() -> bool:
    """Whether the processor that is compiled for converts IEEE halves; LLVM calls a missing function otherwise."""
    return platform.machine().lower() in ("aarch64", "arm64") or machine().has("f16c")

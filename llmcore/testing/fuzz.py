"""Random calls of a backend's native kernels, every buffer against a page that nobody may touch.

``python -m llmcore.testing.fuzz --backend NAME [--calls N] [--seed S] [--op OP] [--format F]``, or
``pytest --pyargs llmcore.testing --backend NAME --random-calls N``. The calls run in a process of their own. One that
strays reads or writes there ends it, and the message then says which call it was, and at which of its buffers.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llmcore import ops
from llmcore.errors import LlmcoreError
from llmcore.hookspecs import BackendInfo, KernelInfo
from llmcore.native.code import loader
from llmcore.native.machine import machine
from llmcore.ops import OpSpec
from llmcore.plugins import plugins, resolve
from llmcore.testing.buffers import KernelMismatch
from llmcore.testing.conformance import Check, check_values
from llmcore.testing.fences import Fence
from llmcore.testing.invoke import Machine, Setting
from llmcore.testing.operands import make_values
from llmcore.testing.random_cases import random_case

FENCES: tuple[Fence, ...] = ("behind", "before")
EXTRA = ("workspace", "scratch")  # memory that a call has beside its operands
ANY = 1e9  # but neither NaN nor unwritten
ENOUGH = 16  # results of a matrix product that show how large its terms are: fewer may all have cancelled


class KernelCrashed(KernelMismatch):
    """A kernel ended the process."""


@dataclass(frozen=True)
class RandomCalls:
    """A series of calls.

    Attributes:
        backend: its name, or the import string of its :class:`BackendInfo`.
        calls, first: how many, and the number of the first: each has a generator of its own.
        ops, formats: only of these ops, and only with these weight formats; all where empty.
    """

    backend: str
    calls: int
    seed: int = 0
    first: int = 0
    ops: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """As the command line takes them."""
        given = ["--backend", self.backend, "--calls", str(self.calls), "--seed", str(self.seed)]
        given += ["--first", str(self.first)] if self.first else []
        return given + [f"--op={name}" for name in self.ops] + [f"--format={name}" for name in self.formats]

    def check(self) -> None:
        """Makes the calls in a child process.

        Raises:
            KernelMismatch: a call went wrong, see :class:`KernelCrashed`.
            LlmcoreError: they could not be made.
        """
        with tempfile.TemporaryDirectory() as folder:
            note = Path(folder) / "call"
            done = self._child("--note", str(note))
            if done.returncode >= 0:
                _raise(done)
                return
            number, said = note.read_text().split("\n")
        one = replace(self, first=int(number), calls=1)
        blamed = one._child("--blame")
        _raise(blamed)
        where = blamed.stdout.strip() or "none of its buffers alone"
        again = f"python -m llmcore.testing.fuzz {shlex.join(one.arguments())}"
        raise KernelCrashed(f"{said}: {signal.Signals(-done.returncode).name} at {where}\nagain: {again}")

    def _child(self, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llmcore.testing.fuzz", *self.arguments(), *more]
        one = {"OMP_NUM_THREADS": "1"}  # of the reference: products so small are not worth waking another
        return subprocess.run(command, env={**os.environ, **one}, capture_output=True, text=True, check=False)


def _raise(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        kind = KernelMismatch if done.returncode == 1 else LlmcoreError
        raise kind(done.stderr.strip() or f"the process ended with {done.returncode}")


class Calls:
    """The calls themselves, in this process."""

    def __init__(self, series: RandomCalls) -> None:
        self.series = series
        self.backend = backend_of(series.backend)
        self.by_op: dict[str, list[KernelInfo]] = {}
        for kernel in self.backend.kernels:
            wanted = not kernel.formats or not series.formats or set(kernel.formats) & set(series.formats)
            if kernel.abi == "native" and wanted and (not series.ops or kernel.op in series.ops):
                self.by_op.setdefault(kernel.op, []).append(kernel)
        if not self.by_op:
            raise LlmcoreError(f"backend {self.backend.name} has no native kernel of that kind")
        for module in self.backend.requires:
            importlib.import_module(module)
        self.backend = replace(self.backend, requires=())  # asked for once, and not before every call

    def run(self, note: Path) -> None:
        """Makes all of them; each is told in ``note`` before it is made."""
        pools = Machine(fenced=True)
        file = os.open(note, os.O_WRONLY | os.O_CREAT)
        for number in range(self.series.first, self.series.first + self.series.calls):
            check, setting, seed = self._call(number, pools)
            name = f"call {number} of seed {self.series.seed}, level {machine().level}, {check.id}"
            said = f"{number}\n{name}: {check.kernel.op} ({check.kernel.target}; {setting})".encode()
            os.pwrite(file, said, 0)
            os.ftruncate(file, len(said))
            try:
                self._make(check, setting, seed)
            except KernelMismatch as error:
                raise KernelMismatch(f"{name}: {error}") from error

    def blame(self) -> list[str]:
        """The buffers of the first call that end the process when they alone have a forbidden page."""
        kernel = self._call(self.series.first, Machine())[0].kernel
        for target in (*kernel.before, kernel.target):
            loader().address(target)
        return [name for name in (*(param.name for param in ops.get(kernel.op).params), *EXTRA) if self._ends_at(name)]

    def _ends_at(self, buffer: str) -> bool:
        child = os.fork()
        if child == 0:
            check, setting, seed = self._call(self.series.first, Machine(fenced=buffer == "scratch"))
            try:
                self._make(check, replace(setting, only=buffer), seed)
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) < 0

    def _call(self, number: int, pools: Machine) -> tuple[Check, Setting, int]:
        """What call ``number`` is, and the seed of its values."""
        rng = np.random.default_rng((self.series.seed, number))
        check = self._draw(rng)
        while check.unsupported():
            check = self._draw(rng)
        return check, self._setting(check, pools, rng), int(rng.integers(1 << 31))

    def _make(self, check: Check, setting: Setting, seed: int) -> None:
        """Makes a call, and compares what comes out with the op's reference."""
        case, formats, spec = check.case, dict(check.formats), ops.get(check.kernel.op)
        values = make_values(spec, case, formats, check.dtype, seed)
        check_values(check.kernel, self.backend, case, values, setting, slack=_slack(check, spec))

    def _draw(self, rng: np.random.Generator) -> Check:
        """A kernel, every op as often as any other, and a case for it."""
        names = list(self.by_op)
        kernels = self.by_op[names[int(rng.integers(len(names)))]]
        kernel = kernels[int(rng.integers(len(kernels)))]
        spec = ops.get(kernel.op)
        weights = [param.name for param in spec.of("weight") if param.type == "any"]
        usable = [name for name in kernel.formats if not self.series.formats or name in self.series.formats]
        formats = {name: usable[int(rng.integers(len(usable)))] for name in weights}
        dtype = kernel.dtypes[int(rng.integers(len(kernel.dtypes)))]
        kv_dtypes = kernel.kv_dtypes if kernel.group == "kv" else ("float32",)
        kv_dtype = kv_dtypes[int(rng.integers(len(kv_dtypes)))]
        return Check(self.backend, kernel, random_case(spec, formats, rng), tuple(formats.items()), dtype, kv_dtype)

    def _setting(self, check: Check, pools: Machine, rng: np.random.Generator) -> Setting:
        threads = int(rng.choice((1, 2, 3), p=(0.8, 0.1, 0.1)))
        taken = [(output, name) for output, names in ops.get(check.kernel.op).inplace.items() for name in names]
        inplace = taken[int(rng.integers(len(taken)))] if taken and rng.random() < 0.5 else None
        late = bool(threads > 1 and rng.random() < 0.5)
        fence = FENCES[int(rng.integers(2))]
        return Setting(pools, check.dtype, check.kv_dtype, threads, late=late, inplace=inplace, fence=fence)


def _slack(check: Check, spec: OpSpec) -> float:
    """By how much the tolerance of a matrix product is widened: the kit's own cases were chosen, these are any."""
    if not check.formats or "K" not in check.case.dims:
        return 1.0
    results = math.prod(check.case.dims[letter] for letter in spec.outputs[0].dims)
    return ANY if results < ENOUGH else 1.0


def backend_of(name: str) -> BackendInfo:
    """The backend of that name, or at that import string."""
    if ":" not in name:
        return plugins().backend(name)
    found: BackendInfo = resolve(name)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 where a call went wrong, or 2 where none could be made."""
    parser = argparse.ArgumentParser(prog="python -m llmcore.testing.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backend", required=True, help="its name, or MODULE:ATTRIBUTE")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--op", action="append", default=[], help="only this op (repeatable)")
    parser.add_argument("--format", action="append", default=[], help="only this weight format (repeatable)")
    parser.add_argument("--note", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--blame", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    series = RandomCalls(given.backend, given.calls, given.seed, given.first, tuple(given.op), tuple(given.format))
    try:
        if given.note is not None:
            Calls(series).run(given.note)
        elif given.blame:
            print(" and ".join(Calls(series).blame()))
        else:
            series.check()
    except KernelMismatch as error:
        print(error, file=sys.stderr)
        return 1
    except LlmcoreError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

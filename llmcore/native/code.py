"""Machine code by import string: loaded from the cache directory, and compiled only where it is not there yet.

Nothing here imports Numba. A kernel is compiled once per machine (:mod:`llmcore.native.compiling`), and its object code
kept in ``<cache>/kernels/<package>-<key>``; every later process links that object into itself, which takes a
millisecond and no compiler. The key is a hash over the sources that the kernel may be made of, the versions of Python,
Numba and llvmlite, and the processor. A folder that no process has asked for in a month goes when the same package
needs a new one.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import json
import mmap
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from llmcore.errors import ConfigError
from llmcore.native.machine import machine
from llmcore.plugins import origin, resolve
from llmcore.weights.cachedir import subfolder

UNUSED_DAYS = 30
ROOM = __name__.rpartition(".")[0]  # of the core this room alone holds compiled code


class CompileWarning(UserWarning):
    """Compiled kernels cannot be kept, so every process compiles its own."""


@dataclass(frozen=True)
class MachineCode:
    """One function, compiled.

    Attributes:
        symbol: its name within ``image``.
        image: an object file.
        runtime: symbols of Numba's own runtime that it needs: code that may raise a Python exception does.
    """

    symbol: str
    image: bytes
    runtime: tuple[str, ...] = ()

    def packed(self) -> bytes:
        """As it is kept: a line of JSON, then the image."""
        head = {"symbol": self.symbol, "runtime": self.runtime, "sha256": hashlib.sha256(self.image).hexdigest()}
        return json.dumps(head).encode() + b"\n" + self.image

    @classmethod
    def unpacked(cls, data: bytes) -> MachineCode | None:
        """What :meth:`packed` has packed; None where the data is damaged."""
        line, _, image = data.partition(b"\n")
        try:
            head = json.loads(line)
            whole = head["sha256"] == hashlib.sha256(image).hexdigest()
            return cls(head["symbol"], image, tuple(head["runtime"])) if whole else None
        except (ValueError, KeyError, TypeError):
            return None


@runtime_checkable
class Compilable(Protocol):
    """A target that is compiled, not called: what :func:`llmcore.native.compiling.native_kernel` makes."""

    def compile(self) -> MachineCode:
        """Machine code for :func:`machine`."""


# --- where it is kept ---


def _sources(package: str) -> Iterator[Path]:
    """The source files that a kernel of ``package`` may be made of: its own, this room's, and the contract's.

    Kernels have the numbers of an op's operands in them, and what a cache keeps of a key.
    """
    core = Path(__file__).parent.parent
    for room in ("native", "ops", "cache"):
        yield from sorted((core / room).glob("*.py"))
    if package != ROOM.partition(".")[0]:
        found = origin(package)
        if found is not None:
            yield from sorted(found.parent.glob("**/*.py")) if found.name == "__init__.py" else [found]


def _package_of(module: str) -> str | None:
    """What is kept together: the top-level package, or a module that lies in none; None for one without a file."""
    names = (module.partition(".")[0], module)
    return next((name for name in names if name != "__main__" and origin(name)), None)


@cache
def cache_folder(package: str) -> Path | None:
    """Where the compiled kernels of ``package`` are kept; None, after a warning, where nothing can be kept."""
    digest = hashlib.sha256()
    for path in _sources(package):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    target = machine()
    digest.update(f"{sys.version} {version('numba')} {version('llvmlite')} {target.cpu} {target.flags}".encode())
    try:
        folder = subfolder("kernels") / f"{package}-{digest.hexdigest()[:20]}"
        if not folder.exists():
            _prune(folder.parent, package)
        folder.mkdir(mode=0o700, exist_ok=True)
        os.utime(folder)  # when it was last of use
        if not os.access(folder, os.W_OK):
            raise ConfigError(f"{folder} is not writable", remedy="name another folder with LLMCORE_CACHE")
    except (ConfigError, OSError) as error:
        warnings.warn(f"compiled kernels are not kept: {error}", CompileWarning, stacklevel=3)
        return None
    return folder


def _prune(kernels: Path, package: str) -> None:
    """Removes what ``package`` compiled long ago: each change of its sources, or of a version, leaves a folder behind.

    A folder is renamed first: another process finds it whole or not at all, and compiles anew.
    """
    long_ago = time.time() - UNUSED_DAYS * 24 * 3600
    for old in kernels.glob(f"{package}-{'[0-9a-f]' * 20}"):
        doomed = old.with_name(f".{old.name}.{os.getpid()}")
        try:
            if old.stat().st_mtime < long_ago:
                old.rename(doomed)
        except OSError:  # another process is just as far
            continue
        shutil.rmtree(doomed, ignore_errors=True)


def file_of(target: str) -> Path | None:
    """Where the code of ``module:function`` is kept, if anywhere."""
    package = _package_of(target.partition(":")[0])
    folder = cache_folder(package) if package else None
    return folder / f"{target.replace(':', '-')}.o" if folder else None


def _keep(file: Path, code: MachineCode) -> None:
    """Writes ``file`` whole or not at all, whoever else does the same."""
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".", delete=False) as part:
            try:
                part.write(code.packed())
                part.flush()
                Path(part.name).replace(file)
            except BaseException:  # an interrupt too
                Path(part.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        warnings.warn(f"compiled kernels are not kept: {error}", CompileWarning, stacklevel=3)


def kept(file: Path | None) -> MachineCode | None:
    """The code in a file; None where there is none, or it is damaged."""
    if file is None:
        return None
    try:
        return MachineCode.unpacked(file.read_bytes())
    except OSError:
        return None


@contextmanager
def progress(name: str) -> Iterator[None]:
    """Says on a terminal what is being compiled, on one line that is gone afterwards."""
    shown = sys.stderr.isatty()
    if shown:
        print(f"\rcompiling for this machine, once: {name}\x1b[K", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def compile_kept(target: str) -> bool:
    """Compiles what ``target`` names into the cache directory; False where that is not possible.

    An empty file says that there is nothing to compile.
    """
    source, file = resolve(target), file_of(target)
    if file is None:
        return False
    if kept(file) is not None:  # another process was faster
        return True
    if not isinstance(source, Compilable):
        file.touch()
        return False
    _keep(file, source.compile())
    return file.exists()


# --- linking it into this process ---


class Loader:
    """Links machine code into this process, each target once; what it has linked stays until the process ends."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._linked: dict[str, int] = {}
        self._jit: Any = None
        self._libraries = 0
        self.compiled = 0

    def address(self, target: str) -> int:
        """The address of the function that an import string names.

        The target is either compilable, or a function without arguments that returns an address (of a shared
        library's function, say).

        Raises:
            PluginError: the target cannot be imported.
            TypeError: what it returned is no address.
        """
        with self._lock:
            if target not in self._linked:
                found = self._find(target)
                if not isinstance(found, int):
                    raise TypeError(f"it returned {found!r}")
                self._linked[target] = found
            return self._linked[target]

    def _find(self, target: str) -> int:
        code = kept(file_of(target))
        if code is not None:
            return self.link(code)
        source = resolve(target)
        if not isinstance(source, Compilable):
            return source()  # type: ignore[no-any-return]
        return self._compile(target, source)

    def own(self, name: str, source: Compilable) -> int:
        """The address of something compilable at hand; kept under ``name``, ``module:function``, if it has a file."""
        with self._lock:
            code = kept(file_of(name))
            return self.link(code) if code else self._compile(name, source)

    def _compile(self, target: str, source: Compilable) -> int:
        with progress(target.partition(":")[2]):
            code = source.compile()
        self.compiled += 1
        address = self.link(code)
        file = file_of(target)
        if file is not None:
            _keep(file, code)
        return address

    def link(self, code: MachineCode) -> int:
        """The address of ``code`` in this process."""
        import llvmlite.binding as llvm

        with self._lock:
            if self._jit is None:
                self._jit = _new_jit()
            library = llvm.JITLibraryBuilder().add_object_img(code.image).export_symbol(code.symbol)
            for symbol in code.runtime:
                library.import_symbol(symbol, _runtime_symbol(symbol))
            self._libraries += 1
            tracker = library.add_current_process().link(self._jit, f"kernel{self._libraries}")
            address = int(tracker[code.symbol])
            tracker.detach()  # else the code would go with it
            return address


def forget_linker() -> None:
    """Gives back the pages of LLVM's own code, some 30 MB: nothing is linked until the next program is built.

    They are clean pages of a mapped file, and come back when they are wanted. Does nothing where there is no /proc.
    """
    try:
        mappings = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    advise = ctypes.CDLL(None).madvise
    for line in mappings:
        if " r-xp " in line and "libllvmlite" in line:
            first, last = (int(address, 16) for address in line.split()[0].split("-"))
            advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _new_jit() -> Any:
    import llvmlite.binding as llvm

    jit = llvm.create_lljit_compiler(target_machine(), use_jit_link=sys.platform != "win32")
    atexit.register(jit.detach)  # daemon threads may run its code until the very end
    return jit


def target_machine() -> Any:
    """LLVM's code generator for :func:`machine`."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    host = machine()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(host.cpu, host.flags, opt=3, reloc="pic", codemodel="small")


def _runtime_symbol(symbol: str) -> int:
    import llvmlite.binding as llvm
    from numba.core.registry import cpu_target

    cpu_target.target_context.refresh()  # registers the symbols of Numba's runtime
    return int(llvm.address_of_symbol(symbol))


@cache
def loader() -> Loader:
    """This process's loader: code that is linked stays, so there is one."""
    return Loader()

"""Compiling native kernels: lazily, each once per machine, into the cache directory.

Compiled code is kept in ``<cache>/kernels/<package>-<key>``. The key is a hash over the sources of the kernels (Numba
itself does not notice a change in a callee of another file), the versions of Python, Numba and llvmlite, and the
processor's name and features. The files are unpickled when loaded, hence the private folder. A folder that no process
has asked for in a month goes when the same package needs a new one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
import time
import types as python_types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding
import numba

from llmcore.errors import ConfigError
from llmcore.weights.cachedir import subfolder

Function = Callable[..., Any]
KERNEL_TYPE = "void(int64, int64, int64)"
UNUSED_DAYS = 30

_CACHE_SETTING = threading.RLock()

inlined = numba.njit(forceinline=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Decorates a helper of kernels: compiled as a part of whatever calls it, and not callable from Python."""


class CompileWarning(UserWarning):
    """Compiled kernels cannot be kept, so every process compiles its own."""


def _sources(module: str) -> Iterator[Path]:
    """The source files that a kernel of ``module`` may be made of: its whole package, and this one."""
    for name in sorted({module.partition(".")[0], __name__.rpartition(".")[0]}):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None:
            continue
        found = Path(file)
        if found.name != "__init__.py":
            yield found
        elif name != "llmcore":  # of the core itself only this room, the other name, holds compiled code
            yield from sorted(found.parent.glob("**/*.py"))


@cache
def cache_folder(module: str) -> Path | None:
    """Where the compiled kernels of ``module`` are kept; None, after a warning, where nothing can be kept."""
    digest = hashlib.sha256()
    for path in _sources(module):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    host = llvmlite.binding
    features = ",".join(f"{name}{on:d}" for name, on in sorted(host.get_host_cpu_features().items()))
    versions = (
        f"{sys.version} {numba.__version__} {llvmlite.__version__} {numba.config.CPU_NAME} {numba.config.CPU_FEATURES}"
    )
    digest.update(f"{versions} {host.get_host_cpu_name()} {features}".encode())
    package = module.partition(".")[0]
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


def _folder_for(function: Function) -> Path | None:
    """Where ``function`` is kept; None too for one typed into an interpreter: it has no source file."""
    return cache_folder(function.__module__) if Path(function.__code__.co_filename).is_file() else None


@contextmanager
def _caching_in(folder: Path | None) -> Iterator[None]:
    """Numba takes the place for its files from a process-wide setting; it is this thread's only inside this block."""
    with _CACHE_SETTING:
        before = numba.config.CACHE_DIR
        if folder is not None:
            numba.config.CACHE_DIR = str(folder)
        try:
            yield
        finally:
            numba.config.CACHE_DIR = before


@contextmanager
def _progress(name: str) -> Iterator[None]:
    """Says on a terminal what is being compiled, on one line that is gone afterwards."""
    shown = sys.stderr.isatty()
    if shown:
        print(f"\rcompiling for this machine, once: {name}\x1b[K", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class NativeKernel:
    """A kernel that is compiled when its address is first asked for.

    Args:
        function: ``f(operands, thread, threads)``, in the subset of Python that Numba compiles.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.__name__ = function.__qualname__
        self.__doc__ = function.__doc__
        self._compiled: Any = None
        self._lock = threading.Lock()

    def __call__(self) -> int:
        """The address of the machine code; this object keeps it alive."""
        with self._lock:
            if self._compiled is None:
                self._compiled = self._compile()
        return int(self._compiled.address)

    def _compile(self) -> Any:
        folder = _folder_for(self.function)
        decorate = numba.cfunc(KERNEL_TYPE, cache=folder is not None, error_model="numpy")
        with _caching_in(folder):
            if self._kept(folder):
                return decorate(self.function)
            with _progress(self.__name__):
                return decorate(self.function)

    def _kept(self, folder: Path | None) -> bool:
        stem = f"{self.function.__module__.rpartition('.')[2]}.{self.function.__qualname__}-"
        return folder is not None and any(folder.glob(f"*/{stem}*.nbi"))


def native_kernel(function: Function) -> NativeKernel:
    """Makes ``f(operands, thread, threads)`` a native kernel, the target of a ``KernelInfo``."""
    return NativeKernel(function)


def compiled(function: Function) -> Function:
    """An njit function that runs without the GIL and is cached like kernels are."""
    folder = _folder_for(function)
    with _caching_in(folder):
        decorated: Function = numba.njit(nogil=True, cache=folder is not None, error_model="numpy")(function)
    return decorated


def specialised(function: Function, name: str, **constants: Any) -> Function:
    """A copy of ``function`` named ``name`` whose global names in ``constants`` mean these values.

    Numba takes globals for constants and compiles calls of them inline, so one kernel written over a global ``unpack``
    becomes one kernel for each weight format. (A closure would do, but Numba never finds one in its cache again.)
    """
    copy = python_types.FunctionType(function.__code__, {**function.__globals__, **constants}, name)
    copy.__qualname__ = name
    copy.__module__ = function.__module__
    copy.__doc__ = function.__doc__
    return copy

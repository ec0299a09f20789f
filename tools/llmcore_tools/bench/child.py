"""Runs a command of an installed distribution in this process, and notes what it took: ``child FILE COMMAND …``.

A process's peak memory is known to itself alone: what its parent is told counts the parent's own memory too, which the
child shared for a moment when it was started.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

HEAVY = ("torch", "numba", "hydra", "transformers")


def main() -> int:
    """Runs the command; writes a JSON object to the file; returns the command's exit code."""
    file, command, *arguments = sys.argv[1:]
    (entry,) = entry_points(group="console_scripts", name=command)
    sys.argv = [command, *arguments]
    code: int = entry.load()()
    Path(file).write_text(json.dumps(noted()), encoding="utf-8")
    return code


def noted() -> dict[str, Any]:
    """This process's peak memory, and which of the heavy packages it has imported."""
    return {"peak_rss_bytes": peak_rss_bytes(), "imported": [name for name in HEAVY if name in sys.modules]}


def peak_rss_bytes() -> int:
    """The most memory that this process has had resident."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no such file system: the system call below knows it elsewhere
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main())

"""Progress of downloads and long loads, on stderr: a bar on a terminal, one plain line elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


class TerminalProgress:
    """A :data:`~llmcore.weights.cachedir.Progress` for people; a context manager that removes its bars at the end.

    Args:
        stream: where to show it; ``sys.stderr`` by default, so that stdout carries the answer alone.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: set[str] = set()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Shows ``done`` of ``total`` bytes of ``what``; a ``total`` of 0 is not known."""
        if not self._stream.isatty():
            if what not in self._said:
                self._said.add(what)
                print(what + (f" ({total / 1e6:.0f} MB)" if total else " …"), file=self._stream, flush=True)
            return
        bars = self._started()
        if what not in self._tasks:
            self._tasks[what] = bars.add_task(what, total=total or None)
        bars.update(self._tasks[what], completed=done, total=total or None)

    def _started(self) -> Bars:
        if self._bars is None:
            from rich.console import Console  # 0.1 s to import, and only a download shows it
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
            self._bars = Progress(*columns, console=Console(file=self._stream), transient=True)
            self._bars.start()
        return self._bars

    def close(self) -> None:
        """Removes the bars; what is shown later starts new ones."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = None
        self._tasks.clear()

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

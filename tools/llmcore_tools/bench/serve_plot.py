"""A load as a picture: each request's latencies over the time of the run, and how they are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmcore.errors import ConfigError
from llmcore_tools.load.records import HUNG_UP, OK, Record

SHOWN = {"TTFT": "tab:blue", "TPOT": "tab:orange", "E2E": "tab:green", "ITL": "tab:purple"}


def draw(path: Path, title: str, records: Sequence[Record]) -> None:
    """Latencies by when a request was sent to the left, their cumulative shares to the right; both logarithmic in ms.

    Raises:
        ConfigError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)  # no window, no global state
    over_time, shares = figure.subplots(1, 2)
    origin = min((record.sent for record in records), default=0.0)
    for name, points in series(records, origin).items():
        if not points:
            continue
        times, values = zip(*points, strict=True)
        if name != "ITL":
            over_time.plot(times, values, ".", color=SHOWN[name], label=name)
        ranked = np.sort(values)
        shares.step(ranked, np.arange(1, len(ranked) + 1) / len(ranked), where="post", color=SHOWN[name], label=name)
    failed = [record.sent - origin for record in records if record.outcome not in (OK, HUNG_UP)]
    if failed:
        at_bottom = over_time.get_xaxis_transform()  # failures have no latency: y is a share of the height
        over_time.plot(failed, [0.02] * len(failed), "x", color="tab:red", label="failed", transform=at_bottom)
    over_time.set(yscale="log", xlabel="sent after so many seconds", ylabel="ms", title=title)
    shares.set(xscale="log", xlabel="ms", ylabel="share at most so long", ylim=(0, 1), title="Distribution")
    for axes in (over_time, shares):
        axes.grid(which="major", alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError(f"--plot {path}: {error.strerror}", remedy="name a file that can be written") from error


def series(records: Sequence[Record], origin: float) -> dict[str, list[tuple[float, float]]]:
    """Seconds after ``origin`` and ms, of complete requests."""
    complete = [record for record in records if record.outcome == OK]
    return {
        "TTFT": [(r.sent - origin, 1e3 * r.ttft) for r in complete if r.ttft is not None],
        "TPOT": [(r.sent - origin, 1e3 * r.tpot) for r in complete if r.tpot is not None],
        "E2E": [(r.sent - origin, 1e3 * r.e2e) for r in complete],
        "ITL": [(r.sent - origin, max(1e3 * gap, 1e-3)) for r in complete for gap in r.gaps],
    }

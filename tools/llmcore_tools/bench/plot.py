"""The roofline as a picture: what the machine allows as a line, every op of a step as a dot below it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmcore.errors import ConfigError
from llmcore_tools.bench.roofline import Roofline
from llmcore_tools.bench.steps import OpRow

SUFFIXES = (".png", ".svg")
LEAST_SHARE = 0.002  # of a step's time: what takes less is not drawn
COLOURS = {"f32": "tab:blue", "int8": "tab:orange"}


def check_target(name: str) -> Path:
    """The file to draw into.

    Raises:
        ConfigError: it is neither PNG nor SVG, its folder is not there, or matplotlib is not installed. Better now than
            after minutes of measuring.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--plot {name}: what kind of picture?", remedy="let the name end in .png or .svg")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot {name}: there is no folder {path.parent}", remedy="make it first")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib, which is not installed", remedy="pip install 'llmcore[bench]'")
    return path


def draw(path: Path, title: str, rows: Sequence[OpRow], limits: Roofline) -> None:
    """Draws the ops of a step under the roofline, both axes logarithmic; a dot's area is its share of the time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    FigureCanvasAgg(figure)  # no window, no global state
    axes, beside = figure.subplots(1, 2, width_ratios=(3, 1))
    points = shown(rows)
    _roof(axes, points, limits)
    total = sum(row.seconds.median for row in rows)
    listed = []
    for number, row in enumerate(points, 1):
        place, share = (row.cost.intensity, row.cost.operations / row.seconds.median / 1e9), row.seconds.median / total
        colour = COLOURS.get(row.kind, "tab:grey")
        axes.scatter(*place, s=2000 * share + 30, color=colour, alpha=0.5, linewidths=0)
        axes.annotate(str(number), place, ha="center", va="center", fontsize=7)
        name = row.path.removeprefix("model.").removeprefix("layers.*.")
        listed.append(
            " ".join(filter(None, (f"{number:>2}", row.op, name, *dict.fromkeys(row.formats), f"{share:.1%}")))
        )
    axes.set_title(title)
    beside.set_axis_off()
    beside.text(0, 1, "\n".join(["share of the step", *listed]), va="top", fontsize=7, family="monospace")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError(f"--plot {path}: {error.strerror}", remedy="name a file that can be written") from error


def _roof(axes: Any, points: Sequence[OpRow], limits: Roofline) -> None:
    """The lines that no dot can lie above, over the dots' range."""
    reach = [row.cost.intensity for row in points] or [1.0]
    low, high = min(0.1, *reach) / 2, max(100.0, *reach) * 2
    for kind, peak in limits.peaks.items():
        ends = [(low, low * limits.bandwidth / 1e9), (peak / limits.bandwidth, peak / 1e9), (high, peak / 1e9)]
        label = f"{kind}: {peak / 1e9:,.0f} GOPS"
        axes.plot(*zip(*ends, strict=True), color=COLOURS.get(kind, "tab:grey"), label=label)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_xlabel("operations per byte")
    axes.set_ylabel(f"10⁹ operations per second, {limits.threads} thread{'s' * (limits.threads > 1)}")
    axes.grid(which="major", alpha=0.3)
    axes.legend(title=f"reading {limits.bandwidth / 1e9:.1f} GB/s", loc="lower right")


def shown(rows: Sequence[OpRow]) -> list[OpRow]:
    """The rows that a picture of operations can show: those that compute and take some of the time; slowest first."""
    total = sum(row.seconds.median for row in rows)
    found = [row for row in rows if row.cost.operations and row.seconds.median > LEAST_SHARE * total]
    return sorted(found, key=lambda row: -row.seconds.median)

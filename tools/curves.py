"""Draws the curves of finished runs into one SVG picture, a panel for each run: error or loss, in training and test.

    python tools/curves.py RUN_DIR... [-o docs/curves.svg]

In: folders that `needle train` saved in. Out: an SVG file; the same runs always give the same bytes.
Invariant: the picture has its own ground, so that it reads alike on light and dark pages. Next: replay.py.
"""

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from needle.train.checkpoint import INDEX
from needle.train.metrics import counted, duration

WIDTH, HEIGHT = 320, 268  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 46, 250, 70, 232  # of the curves in it
COLORS = {"train": "#3d6a96", "test": "#b4233c"}
GROUND, INK, PALE, LINE = "#f5f7fa", "#1f2933", "#52606d", "#d5dbe2"
DATA = {"mnist": "MNIST", "digits": "digits", "cifar10": "CIFAR-10", "shakespeare": "tiny Shakespeare"}
APART = 14  # between two numbers beside the curves


class Axis(NamedTuple):
    """A line of numbers: `low` is drawn at `start`, `high` at `end`, and `ticks` are named."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]

    def place(self, value: float) -> float:
        """Where `value` is drawn."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def nice_axis(low: float, high: float, start: float, end: float) -> Axis:
    """One that holds `low` and `high`, with about four round numbers."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [step * number for number in range(first, last + 1)]
    return Axis(ticks[0], ticks[-1], start, end, ticks)


def panel(folder: Path, left: int) -> str:
    """The curves of one run, beginning `left` points from the left."""
    config: dict[str, Any] = json.loads((folder / INDEX).read_text())["config"]
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    errors = bool(rows[-1]["test_error"])
    quantity, scale, unit = ("error", 100, " %") if errors else ("loss", 1, "")
    curves = {part: [scale * float(row[f"{part}_{quantity}"]) for row in rows] for part in COLORS}
    values = [value for curve in curves.values() for value in curve]
    across = Axis(1, max(len(rows), 2), left + LEFT, left + RIGHT, sorted({1, (len(rows) + 1) // 2, len(rows)}))
    up = nice_axis(0 if errors else min(values), max(values), BOTTOM, TOP)
    took, seed = duration(sum(float(row["seconds"]) for row in rows)), config["settings"]["seed"]
    shown = "error in %" if errors else "nats a character"
    parts = [
        text(left + 16, 30, f"{config['program']} on {DATA[config['settings']['data']]}", INK, "start", 16, "bold"),
        text(left + 16, 48, f"{shown}, {counted(len(rows), 'epoch')}, seed {seed}, {took}", PALE, "start"),
    ]
    for tick in up.ticks:
        y = up.place(tick)
        parts.append(f'<path d="M{across.start:.1f} {y:.1f}H{across.end:.1f}" stroke="{LINE}"/>')
        parts.append(text(across.start - 8, y + 4, f"{tick:.3g}", PALE, "end"))
    parts += [
        text(across.place(tick), up.start + 19, f"{tick:g}" if tick > 1 else "epoch 1", PALE, "middle")
        for tick in across.ticks
    ]
    for part, curve in curves.items():
        points = " ".join(f"{across.place(i):.1f},{up.place(value):.1f}" for i, value in enumerate(curve, 1))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLORS[part]}" stroke-width="2.2"/>')
        parts.append(f'<circle cx="{across.end:.1f}" cy="{up.place(curve[-1]):.1f}" r="3.2" fill="{COLORS[part]}"/>')
    lower, upper = sorted(curves, key=lambda part: curves[part][-1])
    y = up.place(curves[lower][-1]) + 4
    heights = {lower: y, upper: min(up.place(curves[upper][-1]) + 4, y - 2 * APART)}
    for part, height in heights.items():
        number = f"{curves[part][-1]:.2f}{unit}"
        parts.append(text(across.end + 8, height, number, COLORS[part], "start", 12, "bold"))
        parts.append(text(across.end + 8, height - 12, part, COLORS[part], "start", 11))
    return "\n".join(parts)


def text(x: float, y: float, words: str, color: str, anchor: str, size: int = 12, weight: str = "normal") -> str:
    """A line of text."""
    style = f'fill="{color}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{words}</text>'


def draw(folders: list[Path]) -> str:
    """The whole picture."""
    size = f'width="{WIDTH * len(folders)}" height="{HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * len(folders)} {HEIGHT}"'
    panels = [panel(folder, WIDTH * number) for number, folder in enumerate(folders)]
    title = "<title>Error or loss after each epoch, in training and test</title>"
    ground = f'<rect {size} fill="{GROUND}"/>'
    return "\n".join([f'{head} font-family="Helvetica, Arial, sans-serif">', title, ground, *panels, "</svg>", ""])


def main() -> None:
    """Read the command line, write the picture."""
    parser = argparse.ArgumentParser(description="Draw the curves of finished runs.")
    parser.add_argument("folders", metavar="RUN_DIR", nargs="+", type=Path)
    parser.add_argument("-o", "--out", metavar="FILE", type=Path, default=Path("docs/curves.svg"))
    options = parser.parse_args()
    options.out.write_text(draw(options.folders), encoding="utf-8")


if __name__ == "__main__":
    main()

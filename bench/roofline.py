"""A roofline picture of a run: what was attained, under what the machine can do at most.

Across: operations for each byte read.  Up: operations a second.  Both logarithmic.  The slope is the read
bandwidth, the flat parts are the arithmetic peaks; a point on the roof cannot be made faster.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from bench.results import OURS, Report, Row

WIDTH, HEIGHT = 1400, 900
LEFT, RIGHT, TOP, BOTTOM = 110, 330, 70, 90  # margins; the legend stands at the right
INK, GRID, ROOF = "#222222", "#dddddd", "#444444"
COLOURS = ("#c8322b", "#2b6cc8", "#2b9a4b", "#8a4bc8", "#c88a2b")
RADIUS = 6
LEGEND_LINE = 17
NUMBER_WIDTH, NUMBER_HEIGHT = 18, 12
GIGA = 1e9
DECADE = 10.0


@dataclass(frozen=True, slots=True)
class Axes:
    """From values to pixels; bounds are powers of ten."""

    x_low: int
    x_high: int
    y_low: int
    y_high: int

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point stands."""
        across = (math.log10(x) - self.x_low) / (self.x_high - self.x_low)
        up = (math.log10(y) - self.y_low) / (self.y_high - self.y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def draw_rooflines(report: Report, folder: Path) -> list[Path]:
    """roofline-<shape>.png for each shape that has points; their paths."""
    paths: list[Path] = []
    for shape in dict.fromkeys(row.shape for row in report.rows):
        rows = [row for row in report.rows if row.shape == shape and row.attained]
        if rows:
            path = folder / f"roofline-{shape}.png"
            _Picture(report, rows).draw(shape).save(path)
            paths.append(path)
    return paths


class _Picture:
    def __init__(self, report: Report, rows: Sequence[Row]) -> None:
        self._report = report
        self._rows = rows
        self._image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self._draw = ImageDraw.Draw(self._image)
        self._font = ImageFont.load_default(15)
        self._small = ImageFont.load_default(12)
        names = dict.fromkeys(name for row in rows for name in row.attained)
        self._colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
        limits = report.limits
        self._bandwidth = limits.read_bytes_per_s.median
        self._peaks = {"int8 peak": limits.int8_ops_per_s.median, "f32 peak": limits.f32_ops_per_s.median}
        self._axes = self._bounds()
        self._taken: list[tuple[float, float]] = []  # where numbers stand already

    def draw(self, shape: str) -> Image.Image:
        self._grid()
        self._roof()
        self._points()
        machine = self._report.machine
        title = f"{shape}: {machine.description}, {machine.n_threads} threads, {machine.date}"
        self._draw.text((LEFT, 25), title, INK, self._font)
        self._legend()
        return self._image

    def _bounds(self) -> Axes:
        xs = [row.intensity for row in self._rows]
        xs += [peak / self._bandwidth for peak in self._peaks.values()]
        ys = [s.median for row in self._rows for s in row.attained.values()] + list(self._peaks.values())
        return Axes(
            math.floor(math.log10(min(xs))), math.ceil(math.log10(max(xs) * 1.5)),
            math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys) * 1.2)),
        )  # fmt: skip

    def _grid(self) -> None:
        axes = self._axes
        for x in range(axes.x_low, axes.x_high + 1):
            self._line((DECADE**x, DECADE**axes.y_low), (DECADE**x, DECADE**axes.y_high), GRID)
            left, bottom = axes.at(DECADE**x, DECADE**axes.y_low)
            self._draw.text((left, bottom + 8), f"{DECADE**x:g}", INK, self._font, anchor="mt")
        for y in range(axes.y_low, axes.y_high + 1):
            self._line((DECADE**axes.x_low, DECADE**y), (DECADE**axes.x_high, DECADE**y), GRID)
            left, bottom = axes.at(DECADE**axes.x_low, DECADE**y)
            self._draw.text((left - 8, bottom), f"{DECADE**y / GIGA:g}", INK, self._font, anchor="rm")
        middle = (LEFT + WIDTH - RIGHT) / 2
        self._draw.text((middle, HEIGHT - 40), "operations for each byte read", INK, self._font, anchor="mt")
        self._draw.text((LEFT - 60, TOP - 30), "10^9 operations a second", INK, self._font)

    def _roof(self) -> None:
        axes = self._axes
        start = max(DECADE**axes.x_low, DECADE**axes.y_low / self._bandwidth)
        top = max(self._peaks.values()) / self._bandwidth
        self._line((start, start * self._bandwidth), (top, top * self._bandwidth), ROOF, 3)
        for name, peak in self._peaks.items():
            self._line((peak / self._bandwidth, peak), (DECADE**axes.x_high, peak), ROOF, 3)
            x, y = axes.at(DECADE**axes.x_high, peak)
            self._draw.text((x - 4, y - 18), f"{name} {peak / GIGA:.0f}", INK, self._font, anchor="rt")
        middle = math.sqrt(start * top)
        x, y = axes.at(middle, middle * self._bandwidth)
        label = f"read {self._bandwidth / GIGA:.1f} GB/s"
        self._draw.text((x - 10, y - 10), label, INK, self._font, anchor="rb")

    def _points(self) -> None:
        """A number at each point, explained in the legend: cases lie too close for words."""
        for number, row in enumerate(self._rows, 1):
            for name, attained in row.attained.items():
                x, y = self._axes.at(row.intensity, attained.median)
                box = (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)
                if name == OURS:
                    self._draw.ellipse(box, fill=self._colours[name])
                    self._number(number, x + RADIUS + 3, y)
                else:
                    self._draw.ellipse(box, outline=self._colours[name], width=2)

    def _number(self, number: int, x: float, y: float) -> None:
        """Beside the point, further to the right where others stand already."""
        while any(
            abs(x - there) < NUMBER_WIDTH and abs(y - above) < NUMBER_HEIGHT for there, above in self._taken
        ):
            x += NUMBER_WIDTH
        self._taken.append((x, y))
        self._draw.text((x, y), str(number), INK, self._small, anchor="lm")

    def _legend(self) -> None:
        left, y = WIDTH - RIGHT + 20, float(TOP)
        for name, colour in self._colours.items():
            fill = colour if name == OURS else None
            self._draw.ellipse((left, y + 2, left + 12, y + 14), fill=fill, outline=colour, width=2)
            self._draw.text((left + 20, y), name, INK, self._font)
            y += 22
        y += 8
        line = min(LEGEND_LINE, (HEIGHT - y) / len(self._rows))
        for number, row in enumerate(self._rows, 1):
            share = f": {row.of_limit[OURS].median:.0%}" if OURS in row.of_limit else ""
            self._draw.text((left, y), f"{number}  {row.file_type} {row.case}{share}", INK, self._small)
            y += line

    def _line(self, a: tuple[float, float], b: tuple[float, float], colour: str, width: int = 1) -> None:
        self._draw.line((*self._axes.at(*a), *self._axes.at(*b)), fill=colour, width=width)

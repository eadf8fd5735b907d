"""`bench plot`: the figures of `bench curves` as an SVG, written by hand: a line of decode and one of prefill each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import ceil, floor, log2, log10

from together.desktop.bench.curves import Curves, Point

WIDTH, HEIGHT = 300, 170  # of a panel's own area
LEFT, TOP, GAP, BOTTOM = 62, 34, 76, 96
INK, GRID, DECODE, PREFILL = "#333", "#ddd", "#1f6feb", "#d1570a"
PANELS = (
    ("context", "tokens of context"),
    ("users", "users at once"),
    ("stages", "stages on this machine"),
)


def drawing(curves: Curves) -> str:
    """Two rows, decode and prefill; three columns; places are spaced by their logarithms, speeds begin at 0."""
    width = LEFT + len(PANELS) * (WIDTH + GAP)
    height = 2 * (TOP + HEIGHT + GAP) + BOTTOM - GAP
    parts = [f'<rect width="{width}" height="{height}" fill="white"/>']
    for row, (kind, color) in enumerate((("decode", DECODE), ("prefill", PREFILL))):
        for column, (name, label) in enumerate(PANELS):
            points: Sequence[Point] = getattr(curves, name)
            values = [(point.at, getattr(point, f"{kind}_tok_s")) for point in points]
            left, top = LEFT + column * (WIDTH + GAP), TOP + row * (TOP + HEIGHT + GAP)
            parts += _panel(left, top, f"{kind}, tokens/s", label, values, color)
    for index, line in enumerate(curves.caption):
        parts.append(_text(LEFT, height - 34 + 16 * index, line, "start"))
    body = "\n".join(parts)
    font = 'font-family="sans-serif" font-size="12"'
    box = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} {font}>\n{body}\n</svg>\n'


def _panel(
    left: float, top: float, title: str, label: str, values: Sequence[tuple[int, float]], color: str
) -> Iterator[str]:
    bottom, high = top + HEIGHT, ticks(max(value for _, value in values))
    first, last = values[0][0], values[-1][0]
    span = log2(last / first) or 1.0

    def x(at: int) -> float:
        return left + 12 + (WIDTH - 24) * (log2(at / first) / span if last > first else 0.5)

    def y(value: float) -> float:
        return bottom - HEIGHT * value / high[-1]

    yield _text(left, top - 10, title, "start")
    yield _text(left + WIDTH / 2, bottom + 34, label, "middle")
    for tick in high:
        yield f'<line x1="{left}" x2="{left + WIDTH}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="{GRID}"/>'
        yield _text(left - 6, y(tick) + 4, f"{tick:g}", "end")
    for at, _ in values:
        yield _text(x(at), bottom + 17, str(at), "middle")
    line = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in values)
    yield f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>'
    for at, value in values:
        yield f'<circle cx="{x(at):.1f}" cy="{y(value):.1f}" r="3.5" fill="{color}"/>'


def ticks(most: float) -> list[float]:
    """From 0 to at least `most`, by 1, 2 or 5 times a power of ten, in three to six steps."""
    power = 10.0 ** floor(log10(most)) if most > 0 else 1.0
    step = next(part * power for part in (0.2, 0.5, 1.0, 2.0, 5.0) if most <= 5 * part * power)
    return [round(step * index, 9) for index in range(ceil(most / step - 1e-9) + 1)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}">{escape(text)}</text>'

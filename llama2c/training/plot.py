"""A plot of losses over steps as SVG; small enough not to need a library that users would have to install."""

import math
from collections.abc import Iterable

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 800, 450, 60, 40, 20, 20
COLOURS = {"training": "#4477aa", "validation": "#cc3311"}

Points = Iterable[tuple[int, float]]


def loss_plot(training: Points, validation: Points) -> str:
    """Training and validation loss over the steps, with ticks at round numbers."""
    curves = {"training": list(training), "validation": list(validation)}
    steps = [step for curve in curves.values() for step, _ in curve] or [0]
    losses = [loss for curve in curves.values() for _, loss in curve if math.isfinite(loss)] or [0.0]
    xs, ys = _ticks(0, max(steps)), _ticks(min(losses), max(losses))

    def place(step: float, loss: float) -> tuple[float, float]:
        x = LEFT + (step - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (loss - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - BOTTOM - TOP)
        return x, y

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tick in xs:
        x, y = place(tick, ys[0])
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{tick:g}</text>')
    for tick in ys:
        x, y = place(xs[0], tick)
        parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for i, (name, curve) in enumerate(curves.items()):
        points = " ".join("{:.1f},{:.1f}".format(*place(step, loss)) for step, loss in curve if math.isfinite(loss))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="1.5"/>')
        parts.append(f'<text x="{WIDTH - 100}" y="{TOP + 18 * (i + 1)}" fill="{COLOURS[name]}">{name}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">step; loss in nats a token</text>')
    return "\n".join([*parts, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers whose range holds both."""
    span = high - low or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    unit *= next(factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 8)
    first, last = math.floor(low / unit), math.ceil(high / unit)
    return [round(i * unit, 12) for i in range(first, max(last, first + 1) + 1)]

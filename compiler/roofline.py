"""The roofline of a machine as an SVG picture, with the layers of a program under it."""

from collections.abc import Sequence
from html import escape
from math import log2

from systolith.compiler.layers import Layer

WIDTH, HEIGHT = 720, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 20, 50


def roofline(layers: Sequence[Layer], peak: float, bandwidth: float) -> str:
    """SVG text: MACs per byte of memory traffic, MACs per cycle, both logarithmic.

    ``peak``: MACs per cycle of the array; ``bandwidth``: bytes per cycle of the bus. Layers without
    MACs have no point; one without traffic stands at the right edge.
    """
    points = [
        (layer.macs / moved if moved else 0.0, layer.macs / layer.cycles, layer)
        for layer in layers
        if layer.macs and layer.cycles
        for moved in [layer.read_bytes + layer.write_bytes]
    ]
    ridge = peak / bandwidth
    intensities = [x for x, _, _ in points if x] + [ridge]
    left, right = log2(min(intensities)) - 1, log2(max(intensities)) + 2
    heights = [y for _, y, _ in points] + [peak]
    low, high = log2(min(heights)) - 1, log2(peak) + 1

    def at_x(value: float) -> float:
        return _LEFT + (log2(value) - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)

    def at_y(value: float) -> float:
        return _TOP + (high - log2(value)) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    edge = WIDTH - _RIGHT
    floor = max(2**left, 2**low / bandwidth)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" font-size="11">',
        *_axis_x(range(round(left), int(right) + 1), at_x),
        *_axis_y(range(round(low), int(high) + 1), at_y),
        f'<polyline fill="none" stroke="#444" stroke-width="2" points="'
        f"{at_x(floor):.1f},{at_y(floor * bandwidth):.1f} "
        f'{at_x(ridge):.1f},{at_y(peak):.1f} {edge},{at_y(peak):.1f}"/>',
        f'<text x="{edge}" y="{at_y(peak) - 6:.1f}" text-anchor="end">'
        f"array: {peak:g} MACs per cycle</text>",
        f'<text x="{at_x(floor) + 6:.1f}" y="{at_y(floor * bandwidth) - 10:.1f}">'
        f"memory: {bandwidth:g} bytes per cycle</text>",
    ]
    most = max((layer.cycles for _, _, layer in points), default=1)
    for x, y, layer in points:
        radius = 3 + 9 * (layer.cycles / most) ** 0.5
        place = at_x(x) if x else edge
        amount = f"{x:.1f} MACs/byte" if x else "no memory traffic"
        parts.append(
            f'<circle cx="{place:.1f}" cy="{at_y(y):.1f}" r="{radius:.1f}" fill="#3b6ea5" '
            f'fill-opacity="0.45" stroke="#3b6ea5"><title>{escape(layer.label)}: {amount}, '
            f"{y:.1f} MACs/cycle, {layer.cycles:,} cycles</title></circle>"
        )
    return "\n".join([*parts, "</svg>"])


def _axis_x(powers, at) -> list[str]:
    bottom = HEIGHT - _BOTTOM
    lines = [
        f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        "MACs per byte of memory traffic</text>"
    ]
    for power in powers:
        x = at(2.0**power)
        if _LEFT <= x <= WIDTH - _RIGHT:
            lines.append(
                f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#e4e4e4"/>'
                f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{2.0**power:g}</text>'
            )
    return lines


def _axis_y(powers, at) -> list[str]:
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    lines = [
        f'<text x="16" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 16 {middle})">MACs per cycle</text>'
    ]
    for power in powers:
        y = at(2.0**power)
        if _TOP <= y <= HEIGHT - _BOTTOM:
            lines.append(
                f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}" '
                f'stroke="#e4e4e4"/><text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
                f"{2.0**power:g}</text>"
            )
    return lines

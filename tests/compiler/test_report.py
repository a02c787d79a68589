"""The page of a run, and its roofline."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from systolith.compiler.gemm import Shape, compile_gemm
from systolith.compiler.layers import Layer, per_layer
from systolith.compiler.report import Report
from systolith.compiler.roofline import HEIGHT, WIDTH, roofline
from systolith.compiler.timeline import Timeline
from systolith.compiler.timing import predict
from systolith.config import PRESETS
from systolith.isa import QUEUED

TINY = PRESETS["tiny"]


class Outline(HTMLParser):
    """Checks that tags are closed in order, and keeps what stands in the cells of tables."""

    VOID = ("meta", "line", "polyline")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        for name, value in attrs:
            assert name not in ("src", "href") or str(value).startswith("#"), "not self-contained"
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs) -> None:
        pass

    def handle_endtag(self, tag) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.cells[-1] += data.strip()


@pytest.fixture(scope="module")
def run() -> tuple[Timeline, list[str]]:
    program = compile_gemm(TINY, [Shape(30, 40, 50), Shape(4, 12, 8)], "dram")
    labels = [("first <&>", "second")[index > 8] for index in range(program.instructions)]
    return predict(program), labels


def test_the_page_holds_everything(run: tuple[Timeline, list[str]]) -> None:
    predicted, labels = run
    counters = {**predicted.counters, "CYCLES": predicted.cycles + 10}
    measured = replace(predicted, cycles=predicted.cycles + 10, counters=counters)
    made = Report("a <run>", TINY, predicted, labels, measured, clock_mhz=50)
    page = made.html()
    cells = Outline(page).cells
    assert "<script" not in page and "a &lt;run&gt;" in page
    layers = {layer.label: layer for layer in per_layer(predicted, labels, TINY)}
    for text in (f"{predicted.cycles:,}", f"{measured.cycles:,}", "measured on the RTL"):
        assert text in cells
    for label, layer in layers.items():
        row = cells[cells.index(label) :]
        assert row[2] == f"{layer.cycles:,}"
    assert f"{predicted.cycles / 50e3:,.3f} ms" in cells
    # The bars of each unit add up to all cycles.
    for bar in re.findall(r'<div class="stack">(.*?)</div>', page):
        shares = [float(share) for share in re.findall(r"width: ([\d.]+)%", bar)]
        assert sum(shares) == pytest.approx(100, abs=0.1)
    alone = Outline(Report("predicted", TINY, predicted, labels).html()).cells
    assert "measured on the RTL" not in alone and "measured" not in alone


def points(svg: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(svg)
    circles = root.iter("{http://www.w3.org/2000/svg}circle")
    return [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in circles]


def layer(label: str, cycles: int, macs: int, moved: int) -> Layer:
    return Layer(label, 1, cycles, dict.fromkeys(QUEUED, 0), macs // 16, macs, moved, 0)


def test_the_roofline_stands_over_the_layers() -> None:
    """16 MACs and 4 bytes a cycle: layers on the roof, below it, and without traffic or MACs."""
    svg = roofline(
        [
            layer("bound by the array", 100, 1600, 40),
            layer("bound by memory", 100, 400, 400),
            layer("half as fast", 200, 400, 400),
            layer("on chip", 100, 800, 0),
            layer("no array", 100, 0, 400),
        ],
        peak=16,
        bandwidth=4,
    )
    array, memory, half, chip = points(svg)
    root = ElementTree.fromstring(svg)
    (line,) = root.iter("{http://www.w3.org/2000/svg}polyline")
    (x0, y0), (x1, y1), (x2, y2) = (
        tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()
    )
    assert y1 == y2 and x0 < x1 < x2
    assert array[1] == pytest.approx(y1, abs=0.1) and x1 < array[0] < x2
    on_slope = y0 + (memory[0] - x0) / (x1 - x0) * (y1 - y0)
    assert memory[1] == pytest.approx(on_slope, abs=0.5)
    assert half[0] == memory[0] and half[1] > memory[1]
    assert chip[0] == x2
    for x, y in (array, memory, half, chip, (x0, y0)):
        assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT


def test_a_roofline_without_layers() -> None:
    assert points(roofline([], peak=256, bandwidth=16)) == []

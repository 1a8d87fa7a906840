"""Plots are SVG that stands alone."""

from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hil.plots import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Bars, Points, bar_chart, grouped_bars, line_chart

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "a <b> & \"c\" 'd' é"
finite = st.floats(-1e9, 1e9)


def numbers(drawn: ElementTree.Element, tag: str, *names: str) -> list[float]:
    return [float(element.attrib[name]) for element in drawn.iter(f"{SVG}{tag}") for name in names]


def texts(drawn: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in drawn.iter()]


@given(points=st.lists(st.tuples(finite, finite), max_size=12), target=st.none() | finite)
def test_any_points_give_valid_svg_inside_the_picture(points, target):
    """Even none, one, or many on one spot: the XML parses and nothing is drawn outside."""
    row = Points(name="row", x=[x for x, _ in points], y=[y for _, y in points])
    drawn = ElementTree.fromstring(line_chart([row], title="t", x_label="x", y_label="y", target=target))
    assert drawn.tag == f"{SVG}svg"
    assert len(list(drawn.iter(f"{SVG}circle"))) == len(points)
    assert all(LEFT - 1 <= x <= WIDTH for x in numbers(drawn, "circle", "cx"))
    assert all(TOP - 1 <= y <= HEIGHT for y in numbers(drawn, "circle", "cy"))


@given(values=st.lists(st.floats(0, 1e9), max_size=30))
def test_any_counts_give_one_bar_each(values):
    """Zeros are bars too, of no height."""
    names = [f"dev-{number:02d}" for number in range(len(values))]
    drawn = ElementTree.fromstring(bar_chart(names, values, title="t", x_label="x", y_label="y"))
    heights = numbers(drawn, "rect", "height")
    assert len(heights) == len(values)
    assert all(0 <= height <= HEIGHT for height in heights)


def test_a_higher_value_is_drawn_higher():
    """The picture's y axis runs down, the plot's up; time runs to the right."""
    row = Points(name="accuracy", x=[1, 2, 3], y=[0.1, 0.9, 0.5])
    drawn = ElementTree.fromstring(line_chart([row], title="t", x_label="x", y_label="y"))
    first, second, third = numbers(drawn, "circle", "cy")
    assert second < third < first
    assert numbers(drawn, "circle", "cx") == sorted(numbers(drawn, "circle", "cx"))


@pytest.mark.parametrize("scattered", [True, False])
def test_names_are_escaped_and_nothing_is_loaded(references, scattered):
    """What a user named may hold any character; a legend names each of several rows."""
    rows = [Points(name=NASTY, x=[1], y=[2], scattered=scattered), Points(name="other", x=[1], y=[3])]
    for svg in (
        line_chart(rows, title=NASTY, x_label=NASTY, y_label=NASTY),
        bar_chart([NASTY], [3], title=NASTY, x_label=NASTY, y_label=NASTY),
    ):
        drawn = ElementTree.fromstring(svg)
        assert drawn.attrib["aria-label"] == NASTY
        assert texts(drawn).count(NASTY) >= 3
        assert references(svg) == []


def test_on_a_logarithmic_axis_the_same_ratio_is_as_wide():
    """Seconds and days in one picture; what is at 0 has no place, and ticks stand inside the plot."""
    row = Points(name="row", x=[0, 1, 10, 100], y=[0, 1, 2, 3])
    drawn = ElementTree.fromstring(line_chart([row], title="t", x_label="x", y_label="y", log_x=True))
    first, second, third = numbers(drawn, "circle", "cx")
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert (first, third) == (LEFT, WIDTH - RIGHT)
    assert {"1", "2", "5", "10", "20", "50", "100"} <= set(texts(drawn))


@given(points=st.lists(st.tuples(st.floats(1e-9, 1e9), finite), min_size=1, max_size=12))
@example(points=[(1.0, 5e-324)])
def test_any_points_lie_inside_a_logarithmic_plot(points):
    """Even one alone, or all on one spot."""
    row = Points(name="row", x=[x for x, _ in points], y=[y for _, y in points])
    drawn = ElementTree.fromstring(line_chart([row], title="t", x_label="x", y_label="y", log_x=True))
    assert all(LEFT - 1 <= x <= WIDTH for x in numbers(drawn, "circle", "cx"))


def test_a_legend_of_many_long_names_stays_inside_and_above_the_plot():
    """It takes as many rows as it needs, and the picture grows by them."""
    rows = [Points(name=f"a rather long name of run {number}", x=[1, 2], y=[1, 2]) for number in range(8)]
    drawn = ElementTree.fromstring(line_chart(rows, title="t", x_label="x", y_label="y"))
    _, top, width, height = map(float, drawn.attrib["viewBox"].split())
    marks = [float(mark.attrib["y"]) for mark in drawn.iter(f"{SVG}rect")]
    assert len(set(marks)) > 1
    assert all(top < mark < TOP - 10 for mark in marks)
    assert (width, top + height) == (WIDTH, HEIGHT)
    assert all(float(mark.attrib["x"]) < WIDTH - 100 for mark in drawn.iter(f"{SVG}rect"))


def test_a_plot_of_nothing_says_so():
    """No axis is made up."""
    for svg in (
        line_chart([], title="t", x_label="x", y_label="y"),
        bar_chart([], [], title="t", x_label="x", y_label="y"),
    ):
        assert "no data" in texts(ElementTree.fromstring(svg))


def test_groups_of_bars_show_how_low_each_may_come():
    """A bar for each value there is, its minimum marked in it, and a legend."""
    rows = [
        Bars(name="all", values=[0.9, None], lowest=[0.8, None]),
        Bars(name="worst", values=[0.5, 0.4]),
    ]
    drawn = ElementTree.fromstring(grouped_bars(["one", "two"], rows, title="t", x_label="x", y_label="y"))
    assert {"0.9", "0.5", "0.4", "one", "two", "all", "worst"} <= set(texts(drawn))
    (mark,) = [line for line in drawn.iter(f"{SVG}line") if line.attrib["class"] == "lowest"]
    bars = [bar for bar in drawn.iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None]
    assert len(bars) == 3
    top, bottom = float(bars[0].attrib["y"]), float(bars[0].attrib["y"]) + float(bars[0].attrib["height"])
    assert top < float(mark.attrib["y1"]) < bottom

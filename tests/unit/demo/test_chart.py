"""The text chart shows a curve's ends and its shape."""

import pytest

from tinkex.demo.chart import line_chart, resample


def test_chart_marks_highest_and_lowest_value():
    rows = line_chart([4.0, 3.0, 2.0, 1.0], height=3).splitlines()
    assert len(rows) == 3
    assert rows[0].startswith("   4.000")
    assert rows[-1].startswith("   1.000")


def test_chart_of_a_falling_curve_falls():
    rows = line_chart([8.0, 6.0, 4.0, 2.0], height=4).splitlines()
    filled = [sum(row.split("┤")[1][column] != " " for row in rows) for column in range(4)]
    assert filled == sorted(filled, reverse=True)
    assert filled[0] == 4


def test_chart_of_a_flat_curve_is_flat():
    rows = line_chart([0.5] * 5, height=2).splitlines()
    assert set(rows[1].split("┤")[1]) == {"▁"}


def test_long_curves_are_averaged_into_the_width():
    assert resample([1.0, 3.0, 5.0, 7.0], 2) == [2.0, 6.0]
    assert len(resample(list(range(1000)), 60)) == 60


@pytest.mark.parametrize("count", [1, 59, 60, 61, 119])
def test_every_width_gets_its_columns(count):
    row = line_chart([float(i) for i in range(count)], width=60).splitlines()[0]
    assert len(row.split("┤")[1]) == min(count, 60)

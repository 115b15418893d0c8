"""Curves drawn with characters."""

import pytest

from tinkex.cli.plot import curve


def dots(line):
    return sum((ord(one) - 0x2800).bit_count() for one in line if 0x2800 <= ord(one) < 0x2900)


def test_every_point_of_a_falling_line_is_a_dot_from_the_upper_left_to_the_lower_right():
    lines = curve([(x, -x) for x in range(8)], width=4, height=2)
    assert [line.partition("│")[2] for line in lines[:2]] == ["⠑⢄", "  ⠑⢄"]
    assert lines[0].startswith("-0 │") or lines[0].startswith(" 0 │")
    assert lines[1].startswith("-7 │")


def test_the_ranges_stand_beside_and_below():
    *_, axis = lines = curve([(1, 0.5), (200, 3.25)], width=20, height=4)
    assert lines[0].split("│")[0].strip() == "3.25"
    assert lines[3].split("│")[0].strip() == "0.5"
    assert axis.split() == ["1", "200"]
    assert len(lines) == 6


@pytest.mark.parametrize("points", [[(1, 2.0)], [(1, 2.0), (2, 2.0)]])
def test_a_single_point_and_a_level_line_are_drawn(points):
    lines = curve(points, width=10, height=3)
    assert sum(dots(line) for line in lines) == len(points)


def test_points_at_one_place_are_one_dot():
    lines = curve([(1, 1), (1, 1), (2, 2)], width=10, height=3)
    assert sum(dots(line) for line in lines) == 2

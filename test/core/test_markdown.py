# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables in Markdown, and the numbers in them."""

from timebill_ros.markdown import markdown_table, number, percent


def test_a_table_has_a_line_per_row_and_an_empty_cell_where_nothing_is_to_say() -> None:
    assert markdown_table(('a', 'b'), iter([(1, None), ('x', 2.5)])) == (
        '| a | b |\n|---|---|\n| 1 |  |\n| x | 2.5 |')


def test_what_was_not_measured_is_a_dash() -> None:
    assert (percent(0.125, 1), percent(1.0), number(2.0, 2)) == ('12.5 %', '100 %', '2.00')
    assert percent(None) == percent(float('nan')) == number(None, 1) == '–'

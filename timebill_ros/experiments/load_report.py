# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The Markdown table of ``timebill bench load --json``."""

from typing import Any

from timebill_ros.markdown import markdown_table, percent


def table(report: dict[str, Any]) -> str:
    """Return what was met at which load, and up to which load it is 95 %."""
    rows, said = [], []
    for name, swept in report['traces'].items():
        short = name.removeprefix('azure_llm_trace_')
        for row in swept['rows']:
            cells = [(percent(of['share_met'], 1), f'{of["tokens_per_s"]:.0f}')
                     for of in (row['fifo'], row['ours'])]
            rows.append((short, f'{row["load"]:g}', *cells[0], *cells[1]))
        most = swept['load_with_95_percent_met']
        said.append(
            f'{short}: median solo time {swept["solo_s_median"]:.3g} s; 95 % met up to a load of '
            f'{most["fifo"]:g} (fifo) and {most["ours"]:g} (ours) of those tried.')
    return '\n'.join([
        f'{report["date"]}, {report["device"]}, {report["clock"]} clock, {report["queries"]} '
        f'queries per load, deadline = {report["slack"]:g} × solo time, up to '
        f'{report["max_batch"]} at once.', '',
        markdown_table(('trace', 'load', 'fifo met', 'answered tokens/s', 'ours met',
                        'answered tokens/s'), rows), '', *said, ''])

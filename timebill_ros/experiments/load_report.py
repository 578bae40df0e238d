# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The Markdown table of ``timebill bench load --json``."""

from typing import Any


def table(report: dict[str, Any]) -> str:
    """Return what was met at which load, and up to which load it is 95 %."""
    lines = [
        f'{report["date"]}, {report["device"]}, {report["clock"]} clock, {report["queries"]} '
        f'queries per load, deadline = {report["slack"]:g} × solo time, up to '
        f'{report["max_batch"]} at once.',
        '', '| trace | load | fifo met | answered tokens/s | ours met | answered tokens/s |',
        '|---|---|---|---|---|---|']
    said = []
    for name, swept in report['traces'].items():
        short = name.removeprefix('azure_llm_trace_')
        for row in swept['rows']:
            fifo, ours = row['fifo'], row['ours']
            lines.append(
                f'| {short} | {row["load"]:g} | {fifo["share_met"]:.1%} | '
                f'{fifo["tokens_per_s"]:.0f} | {ours["share_met"]:.1%} | '
                f'{ours["tokens_per_s"]:.0f} |')
        most = swept['load_with_95_percent_met']
        said.append(
            f'{short}: median solo time {swept["solo_s_median"]:.3g} s; 95 % met up to a load of '
            f'{most["fifo"]:g} (fifo) and {most["ours"]:g} (ours) of those tried.')
    return '\n'.join([*lines, '', *said, ''])

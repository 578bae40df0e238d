# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The experiments: each module measures rows, makes a summary of them, and draws it.

``measure(bench)`` adds rows, ``summarise(rows)`` returns plain values, ``draw(summary, rows)``
returns drawings. Summaries and drawings need nothing but the rows, so that they can be made again,
elsewhere and later.
"""

EXPERIMENTS = {
    'rlp-accuracy': "predicted response lengths against the target's (the paper's Table 1)",
    'ete-accuracy': 'timing laws, and predicted times against measured ones (Fig. 5 and 6)',
    'budgets': 'average score and completion over budgets, Kill and Skip-Next (Fig. 7)',
    'pessimism': 'the pessimistic factor k from 1 to 8 at a fixed budget (Fig. 8), and learned k',
    'theta': 'quality and seconds over precision tier and eviction ratio, and what is picked',
    'load': 'deadlines met over offered load, several queries at once',
    'robot': "a planner that ticks at 1 Hz, against the same loop around plain 'generate'",
}


def module_of(name: str) -> str:
    """Return the name of the module of an experiment."""
    return f'{__name__}.{name.replace("-", "_")}'

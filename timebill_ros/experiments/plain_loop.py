# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The process of ``plain_generate``, asked as the robot asks our engine."""

import json
import os
import subprocess
import time
from typing import Any

from timebill_ros.executor.engine_command import engine_environment, engine_python, module_argv
from timebill_ros.experiments.engine_host import EngineFailed
from timebill_ros.experiments.tasks import Item
from timebill_ros.paths import cache_dir
from timebill_ros.query import Outcome


class PlainLoop:
    """transformers' ``generate`` with ``max_time``, as a context."""

    def __init__(self, model: str, device: str, sampling: dict[str, Any], margin_s: float,
                 cache: str = '', engine_python_path: str = '') -> None:
        """``margin_s`` is taken off every limit, as the node takes it off every budget."""
        self._penalty, self._margin_s = sampling['repetition_penalty'], margin_s
        command = module_argv(
            engine_python(engine_python_path), 'experiments.plain_generate', model,
            str(cache_dir(cache) / 'models'), device)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=engine_environment(os.environ))
        self.loaded = self._read()

    def __enter__(self) -> 'PlainLoop':
        """Return it: it is loaded."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def ask(self, item: Item, budget_s: float) -> dict[str, Any]:
        """Ask; returns a row like those of our engine, when generate has returned."""
        began_s = time.monotonic()
        asked = {'prompt': item.prompt, 'max_time_s': max(0.0, budget_s - self._margin_s),
                 'max_new_tokens': item.max_new_tokens, 'repetition_penalty': self._penalty}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + '\n')
        self._process.stdin.flush()
        answer = self._read()
        elapsed_s = time.monotonic() - began_s
        outcome = Outcome.COMPLETED if answer['ended'] else Outcome.TRUNCATED
        if elapsed_s > budget_s:
            outcome = Outcome.DEADLINE_MISSED
        return {'outcome': outcome.name, 'elapsed_s': elapsed_s, 'budget_s': budget_s,
                'response': answer['text'], 'n_prompt': answer['n_prompt'],
                'n_generated': answer['n_generated']}

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EngineFailed('the process of generate ended; start it by hand to see why: '
                               + ' '.join(map(str, self._process.args)))
        return dict(json.loads(line))

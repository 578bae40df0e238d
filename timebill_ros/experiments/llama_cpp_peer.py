# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Llama.cpp on a GGUF file, in a process of its own with its own defaults (wheel xllamacpp).

As a program it answers lines of JSON on standard input, ``[n_prompt, n_predict, reuse]``, with
``[prompt_ms, predicted_ms]``: its own times, of the prompt and of one token of the answer.
"""

import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path
import subprocess
import sys
from typing import Any

REQUIREMENT = 'xllamacpp'
_TOKENS = 40000          # ids below this are in the vocabulary of every model that is compared


def prompt(n_tokens: int) -> list[int]:
    """Return the ids that both sides run."""
    return [100 + 37 * index % _TOKENS for index in range(n_tokens)]


def version() -> str:
    """Return the wheel's release, '' where it is not installed."""
    if importlib.util.find_spec(REQUIREMENT) is None:
        return ''
    return f'{REQUIREMENT} {importlib.metadata.version(REQUIREMENT)}'


class LlamaCpp:
    """The process; a context manager that ends it."""

    def __init__(self, file: Path, threads: int, n_context: int) -> None:
        """Start it; it loads while the first question waits."""
        environment = {name: value for name, value in os.environ.items()
                       if name != 'OMP_WAIT_POLICY'}        # that one is ours
        self._process = subprocess.Popen(
            [sys.executable, '-m', __name__, str(file), str(threads), str(n_context)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment)

    def __enter__(self) -> 'LlamaCpp':
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def prefill_ms(self, n_tokens: int) -> float:
        """Return the time of a prompt."""
        return self._ask(n_tokens, 1, False)[0]

    def step_ms(self, n_cached: int, steps: int) -> float:
        """Return the time per token of an answer behind ``n_cached`` tokens."""
        return self._ask(n_cached, steps + 1, True)[1]

    def _ask(self, *question: Any) -> list[float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + '\n')
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError('llama.cpp ended')
        return list(json.loads(line))


def main() -> None:
    """Answer questions until standard input ends."""
    file, threads, n_context = sys.argv[1:]
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)                                  # whatever the library prints
    import xllamacpp
    settings = xllamacpp.CommonParams()
    settings.model.path = file
    settings.n_ctx, settings.n_parallel = int(n_context), 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = int(threads)
    server = xllamacpp.Server(settings)
    for line in sys.stdin:
        n_prompt, n_predict, reuse = json.loads(line)
        times = server.handle_completions({
            'prompt': prompt(n_prompt), 'n_predict': n_predict, 'cache_prompt': reuse,
            'ignore_eos': True, 'samplers': ['top_k'], 'top_k': 1})['timings']
        # the answer's first token comes from the prompt's logits: n_predict - 1 steps
        step_ms = times['predicted_ms'] / max(1, n_predict - 1)
        print(json.dumps([times['prompt_ms'], step_ms]), file=answers, flush=True)


if __name__ == '__main__':
    main()

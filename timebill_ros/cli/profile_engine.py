# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Profile with an engine process of our own; needs no ROS."""

import argparse
import os
import queue
import sys
from typing import Any

from timebill_ros.cli.profile_progress import Outcome, ProgressBar
from timebill_ros.executor.engine_command import engine_argv, engine_environment, engine_python
from timebill_ros.executor.engine_process import EngineProcess
from timebill_ros.executor.messages import (
    AUTO_TIERS, Load, LoadFailed, Loading, ProfileDone, ProfileProgress, Ready, RunProfile)
from timebill_ros.time_estimator.coefficients import TimingCoefficients

_ENDED = object()


def measure(arguments: argparse.Namespace, bar: ProgressBar) -> Outcome:
    """Start an engine as the arguments say, have it measure, and end it."""
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    lines: list[str] = []
    try:
        python = engine_python(arguments.engine_python)
        process = EngineProcess(
            lambda read_fd, write_fd: engine_argv(python, read_fd, write_fd),
            engine_environment(os.environ), lambda _, message: heard.put(message), lines.append,
            lambda: heard.put(_ENDED))
    except OSError as error:
        return Outcome(None, '', f'the engine cannot be started: {error}')
    process.send(Load(
        arguments.model, arguments.device, arguments.dtype, arguments.threads,
        arguments.max_context, tiers=arguments.tiers or [AUTO_TIERS],
        cache_dir=arguments.cache_dir))
    try:
        while True:
            message = heard.get()
            if isinstance(message, Ready):
                process.send(RunProfile(arguments.max_tokens, arguments.repeats))
            elif isinstance(message, (Loading, ProfileProgress)):
                _show(bar, message)
            elif message is _ENDED:
                print(*lines, sep='\n', file=sys.stderr)
                return Outcome(None, '', f'the engine process ended: {process.fault}')
            elif isinstance(message, (LoadFailed, ProfileDone)):
                return _outcome(message)
    finally:
        process.kill()


def _show(bar: ProgressBar, message: Loading | ProfileProgress) -> None:
    if isinstance(message, Loading):
        bar.say(message.what)
    else:
        bar.move(message.stage, message.done, message.total, message.predicted_left_s)


def _outcome(message: LoadFailed | ProfileDone) -> Outcome:
    if isinstance(message, LoadFailed) or message.coefficients is None:
        return Outcome(None, '', message.error_msg)
    return Outcome(TimingCoefficients.from_dict(message.coefficients), message.path)

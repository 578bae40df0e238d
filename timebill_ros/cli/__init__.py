# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill``: one file per sub-command, each with ``add_arguments(parser)`` and ``run(...)``."""

import argparse
import importlib
import os
import sys

# In the order in which a newcomer needs them. A sub-command's module is imported when it is used,
# so that "timebill doctor" runs where rclpy, or torch, is what is missing.
COMMANDS = {
    'demo': 'start a server, ask it queries with different budgets, print a table',
    'serve': 'run the nodes in the foreground',
    'ask': 'ask a running server one question within a budget',
    'profile': 'measure the model on this machine',
    'record': 'write every query of a running server to a file',
    'plot': 'draw a profile, or recorded queries',
    'doctor': 'say what is missing on this machine and how to mend it',
    'setup-engine': 'make the virtual environment that the engine runs in',
    'predictor': 'collect response lengths, train and measure length predictors',
    'bench': 'measure overheads, start-up and memory',
    'experiment': 'run the experiments behind the claims, one or all',
    'report': 'one page about the experiments that were run',
}
# What the node's interpreter need not have: a command that wants one goes on in the engine's.
ENGINE_MODULES = ('torch', 'transformers', 'safetensors')
EXIT_USAGE = 2
# As shells say it: 128 and the number of the signal, SIGINT and SIGPIPE.
EXIT_INTERRUPTED = 130
EXIT_NO_READER = 141


def main(argv: list[str] | None = None) -> int:
    """Run one sub-command; returns the exit status."""
    given = sys.argv[1:] if argv is None else argv
    objection = _not_text(given)
    if objection:
        print(f'timebill: {objection}', file=sys.stderr)
        return EXIT_USAGE
    try:
        status = _run(given)
        sys.stdout.flush()
        return status
    except ModuleNotFoundError as error:
        if error.name not in ENGINE_MODULES:
            raise
        from timebill_ros.cli.in_engine_python import run_again

        return run_again(error.name)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output is gone ("| head"); the interpreter would complain when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_NO_READER


def _run(given: list[str]) -> int:
    command = given[0] if given and given[0] in COMMANDS else None
    parser = argparse.ArgumentParser(
        prog='timebill', description='Answers from a language model within a hard time budget.'
    )
    parsers = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, text in COMMANDS.items():
        child = parsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + '.')
        if name == command:
            module = importlib.import_module('timebill_ros.cli.' + name.replace('-', '_'))
            module.add_arguments(child)
            child.set_defaults(run=module.run)
    arguments = parser.parse_args(given)
    return int(arguments.run(arguments))


def _not_text(arguments: list[str]) -> str:
    """Return what is wrong with bytes on the command line that are not UTF-8; '' = nothing."""
    for number, argument in enumerate(arguments, 1):
        try:
            argument.encode('utf-8')
        except UnicodeEncodeError as error:
            return (
                f'argument {number} is not valid UTF-8: '
                f'byte 0x{ord(argument[error.start]) & 0xFF:02x} after '
                f'{argument[: error.start]!r}; text has to be UTF-8'
            )
    return ''

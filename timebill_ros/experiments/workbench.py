# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What every experiment gets: its settings, its rows, its questions, and an engine to ask."""

from dataclasses import asdict, dataclass, field
import json
import os
from pathlib import Path
import platform
import random
import subprocess
import sys
import time

import timebill_ros
from timebill_ros import engine_probe
from timebill_ros.cli.profile_progress import ProgressBar
from timebill_ros.executor.engine_command import engine_environment, engine_python
from timebill_ros.executor.messages import Load
from timebill_ros.experiments.engine_host import EngineHost
from timebill_ros.experiments.recorder import Recorder, Row
from timebill_ros.experiments.tasks import generated, Item, longbench, spread

TIERS = ('bf16', 'int8', 'int4')     # bf16: on a CPU the precision that it computes in
COMMIT_VARIABLE = 'TIMEBILL_COMMIT'
_PROBE_S = 60.0


@dataclass(frozen=True)
class Settings:
    """What was asked for on the command line."""

    quick: bool = False
    model: str = 'embedded'
    device: str = 'auto'
    tiers: tuple[str, ...] = TIERS
    data: str = ''                      # folder of the LongBench file; '' = look for it
    seed: int = generated.DEFAULT_SEED
    items: int = 0                      # questions; 0 = as many as the experiment wants
    methods: tuple[str, ...] = ()       # names of policies.Method; () = all
    ros: bool = False                   # through the action of a real node, where that is possible
    engine_python: str = ''
    cache_dir: str = ''

    def header(self, experiment: str) -> Row:
        """Return what has to be the same for rows to belong together."""
        wishes = asdict(self)
        for place in ('engine_python', 'cache_dir', 'data'):
            del wishes[place]
        return {'experiment': experiment, **wishes, 'tiers': list(self.tiers),
                'methods': list(self.methods),
                'longbench': longbench.data_file(self.data_folder) is not None}

    @property
    def data_folder(self) -> Path | None:
        """The folder that was named, if one was."""
        return Path(self.data).expanduser() if self.data else None


class EngineKeeper:
    """The one engine of several experiments in a row, as a context; started when it is needed."""

    def __init__(self, settings: Settings) -> None:
        """Start nothing yet."""
        self._settings = settings
        self._host: EngineHost | None = None

    def __enter__(self) -> 'EngineKeeper':
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the engine."""
        self.close()

    def close(self) -> None:
        """End the engine, if it runs; the next ``host`` starts another."""
        host, self._host = self._host, None
        if host is not None:
            host.close()

    def host(self) -> EngineHost:
        """Return the running engine, or a new one."""
        if self._host is None:
            settings = self._settings
            self._host = EngineHost(
                Load(settings.model, settings.device, tiers=list(settings.tiers),
                     cache_dir=settings.cache_dir), settings.engine_python)
        return self._host


@dataclass
class Bench:
    """One experiment being run."""

    settings: Settings
    recorder: Recorder
    bar: ProgressBar
    keeper: EngineKeeper
    _noted: EngineHost | None = None
    _items: list[Item] = field(default_factory=list)

    def close(self) -> None:
        """End the engine: somebody else needs the machine."""
        self.keeper.close()

    def host(self) -> EngineHost:
        """Return the engine, and note what it is."""
        self.bar.say('starting the engine')
        host = self.keeper.host()
        if host is not self._noted:
            self.recorder.add(f'start/{time.time_ns()}', self._machine(host))
            self._noted = host
        return host

    def items(self, count: int, quick: int) -> list[Item]:
        """Return the questions: ``count`` in turn from all sets, ``quick`` short ones if quick."""
        settings = self.settings
        if not self._items:
            longest = generated.QUICK_LONGEST if settings.quick else generated.LONGEST
            self._items = generated.generated(longest, settings.seed)
            path = longbench.data_file(settings.data_folder)
            if path is None:
                self.skip('LongBench', longbench.HOW_TO_GET)
            elif not settings.quick:
                info = self.host().info
                self._items += longbench.read(path, info.max_context)
        items = list(self._items)
        if not settings.quick:      # the sets grow from short to long: any number has all lengths
            random.Random(settings.seed).shuffle(items)
        return spread(items, settings.items or (quick if settings.quick else count))

    def skip(self, what: str, why: str) -> None:
        """Note that something was left out, and why."""
        key = f'skip/{what}'
        if key not in {row['case'] for row in self.recorder.rows}:
            self.recorder.add(key, {'skipped': what, 'why': why})

    def _machine(self, host: EngineHost) -> Row:
        """Return what the numbers hold for."""
        ready = host.ready
        return {
            'info': vars(ready.info), 'load_s': ready.load_s, 'profile_s': ready.profile_s,
            'coefficients_source': ready.coefficients_source, 'date': time.strftime('%Y-%m-%d'),
            'machine': f'{platform.machine()}, {os.cpu_count()} cores',
            'versions': {'timebill_ros': timebill_ros.__version__, **self._versions()},
            'commit': commit()}

    def _versions(self) -> dict[str, str]:
        """Return the versions of the engine's interpreter and libraries."""
        done = subprocess.run(
            [engine_python(self.settings.engine_python), str(Path(engine_probe.__file__))],
            capture_output=True, text=True, timeout=_PROBE_S, env=engine_environment(os.environ))
        if done.returncode:
            return {'python': platform.python_version()}
        found = json.loads(done.stdout)
        return {'python': found['python'],
                **{name: found['versions'][name] for name in ('torch', 'transformers')}}


def commit() -> str:
    """Return the commit of the source tree, $TIMEBILL_COMMIT, or '' in an installation."""
    named = os.environ.get(COMMIT_VARIABLE, '')
    if named:
        return named
    tree = Path(timebill_ros.__file__).resolve().parents[1]
    if not (tree / '.git').exists():
        return ''
    done = subprocess.run(['git', 'describe', '--always', '--dirty', '--abbrev=9'], cwd=tree,
                          capture_output=True, text=True)
    return done.stdout.strip()


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)

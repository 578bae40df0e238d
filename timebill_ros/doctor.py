# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
What is missing on this machine, and how to mend it.

Every check stands alone and imports neither ROS nor torch here: both are tried in processes of
their own, because a broken installation of either may end the interpreter that loads it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
import importlib.util
import json
import os
from pathlib import Path
import platform
import shutil
import subprocess
import sys
from typing import Any

from timebill_ros.executor.engine_command import engine_environment, engine_python
from timebill_ros.paths import cache_dir

OK = 'ok'
WARNING = 'warning'    # works, though perhaps not as you expect
MISSING = 'missing'    # queries cannot be answered

PYTHONS = ((3, 10), (3, 14))           # from, to
# 4.57 reads checkpoints saved by 5.x with a wrong rope_theta, silently.
TRANSFORMERS = ((5, 17), (6, 0))
MIN_FREE_MEMORY_BYTES = 2 * 1024**3    # the embedded model, its conversion, both processes
MIN_FREE_DISK_BYTES = 1024**3          # the converted embedded model is half of that
MAX_DOMAIN_ID = 101                    # above it, DDS takes ports that Linux hands out to others
DISCOVERY_RANGES = ('SUBNET', 'LOCALHOST', 'OFF', 'SYSTEM_DEFAULT')
PROBE_TIMEOUT_S = 120.0

_SETUP_ENGINE = 'timebill setup-engine'
_ROS_PROBE = """
import rclpy
rclpy.init()
node = rclpy.create_node('timebill_doctor', enable_rosout=False)
from timebill_ros.action import Query
print(rclpy.get_rmw_implementation_identifier())
node.destroy_node()
rclpy.shutdown()
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: str        # OK, WARNING or MISSING
    detail: str
    mend: str = ''     # what to do; '' when status is OK


def examine(python: str = '', cache: str = '') -> Iterator[Finding]:
    """
    Yield the findings one by one; some take seconds.

    ``python`` and ``cache`` are what the node gets as ``engine_python`` and ``cache_dir``.
    """
    yield _node_python()
    yield _ros()
    yield from _discovery(os.environ)
    yield from _engine(python)
    yield _cache(cache_dir(cache))
    yield _memory()


def _node_python() -> Finding:
    here = f'{platform.python_version()} ({sys.executable})'
    if PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        return Finding('python', OK, here)
    return Finding('python', WARNING, here, 'tested with Python 3.10 to 3.13')


def _ros() -> Finding:
    if importlib.util.find_spec('rclpy') is None:
        return Finding('ros', MISSING, 'no rclpy',
                       'source your ROS 2 installation, or run "make build"')
    if importlib.util.find_spec('timebill_ros.action') is None:
        return Finding('ros', MISSING, 'the interfaces of timebill_ros are not built',
                       'run "colcon build" and source install/setup.bash, or run "make build"')
    done = _run([sys.executable, '-c', _ROS_PROBE], os.environ)
    distribution = os.environ.get('ROS_DISTRO', '')
    if done.returncode == 0:
        return Finding('ros', OK, f'{distribution} {done.stdout.strip()}'.strip())
    return Finding('ros', MISSING, 'a node cannot be made: ' + _last_line(done.stderr),
                   'check RMW_IMPLEMENTATION, and that only one ROS 2 distribution is sourced')


def _discovery(environment: Mapping[str, str]) -> Iterator[Finding]:
    domain = environment.get('ROS_DOMAIN_ID', '') or '0'
    reach = environment.get('ROS_AUTOMATIC_DISCOVERY_RANGE', '') or 'SUBNET'
    names = ('ROS_LOCALHOST_ONLY', 'ROS_STATIC_PEERS', 'ROS_DISCOVERY_SERVER',
             'FASTRTPS_DEFAULT_PROFILES_FILE', 'CYCLONEDDS_URI')
    others = ''.join(f', {name}={environment[name]}' for name in names if environment.get(name))
    detail = f'domain {domain}, range {reach}{others}'
    if not (domain.isdecimal() and int(domain) <= MAX_DOMAIN_ID):
        yield Finding('discovery', WARNING, detail, f'set ROS_DOMAIN_ID to 0..{MAX_DOMAIN_ID}')
    elif reach.upper() not in DISCOVERY_RANGES:
        yield Finding('discovery', WARNING, detail,
                      'set ROS_AUTOMATIC_DISCOVERY_RANGE to one of ' + ', '.join(DISCOVERY_RANGES))
    elif reach.upper() == 'OFF':
        yield Finding('discovery', MISSING, detail,
                      'with range OFF no client finds the server: use LOCALHOST or SUBNET')
    else:
        yield Finding('discovery', OK, detail)
    if not os.access('/dev/shm', os.W_OK):
        yield Finding('shared memory', WARNING, '/dev/shm is not writable',
                      'Fast DDS falls back to UDP; give a container --ipc=host or --shm-size')


def _engine(configured: str) -> Iterator[Finding]:
    try:
        python = engine_python(configured)
    except FileNotFoundError as error:
        yield Finding('engine', MISSING, str(error), _SETUP_ENGINE)
        return
    try:
        found = probe_engine(python)
    except RuntimeError as error:
        yield Finding('engine', MISSING, f'{python}: {error}', _SETUP_ENGINE)
        return
    yield _engine_libraries(python, found)
    if found['model_file']:
        yield Finding('embedded model', OK, found['model_file'])
    else:
        yield Finding('embedded model', WARNING, f'not installed for {python}',
                      f'{_SETUP_ENGINE}; or set the parameter "model" to one of your own')
    if found['versions']['torch']:
        yield _device(found)


def _engine_libraries(python: str, found: dict[str, Any]) -> Finding:
    versions = found['versions']
    absent = [name for name, version in versions.items() if version is None]
    if absent:
        return Finding('engine', MISSING, f'{python} has no {", ".join(absent)}', _SETUP_ENGINE)
    if found['torch_error']:
        return Finding('engine', MISSING,
                       f'torch of {python} does not load: {found["torch_error"]}',
                       f'remove its environment and run {_SETUP_ENGINE}')
    detail = (f'{python} (Python {found["python"]}): torch {versions["torch"]}, '
              f'transformers {versions["transformers"]}')
    numbers = versions['transformers'].split('.')[:2]
    release = tuple(int(number) for number in numbers if number.isdecimal())
    if not TRANSFORMERS[0] <= release < TRANSFORMERS[1]:
        return Finding('engine', MISSING, detail,
                       f'transformers has to be >= 5.17 and < 6: {_SETUP_ENGINE}')
    return Finding('engine', OK, detail)


def _device(found: dict[str, Any]) -> Finding:
    if found['devices']:
        return Finding('device', OK, ', '.join(found['devices']))
    if not Path('/dev/nvidia0').exists() and not Path('/dev/nvhost-gpu').exists():
        return Finding('device', OK, 'no GPU: the engine runs on the CPU')
    if found['cuda_build'] is None:
        return Finding('device', WARNING, 'there is a GPU, but this is the CPU build of torch',
                       'install a CUDA build of torch into the environment of the engine')
    return Finding('device', WARNING,
                   f'there is a GPU, but torch (CUDA {found["cuda_build"]}) cannot use it',
                   'check nvidia-smi: the driver has to be new enough for that CUDA version')


def probe_engine(python: str) -> dict[str, Any]:
    """Return what engine_probe prints in that interpreter; raises RuntimeError if it cannot run."""
    source = (Path(__file__).parent / 'engine_probe.py').read_text(encoding='utf-8')
    done = _run([python, '-'], engine_environment(os.environ), source)
    if done.returncode:
        raise RuntimeError(_last_line(done.stderr))
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _cache(directory: Path) -> Finding:
    existing = directory
    while not existing.exists():
        existing = existing.parent
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        return Finding('cache', MISSING, f'{directory} is not writable',
                       'set TIMEBILL_CACHE_DIR to a directory of your own')
    free = shutil.disk_usage(existing).free
    detail = f'{directory} ({_gib(free)} free)'
    if free < MIN_FREE_DISK_BYTES:
        return Finding('cache', WARNING, detail,
                       f'free {_gib(MIN_FREE_DISK_BYTES)} for converted models')
    return Finding('cache', OK, detail)


def _memory() -> Finding:
    free = available_memory_bytes()
    if free < MIN_FREE_MEMORY_BYTES:
        return Finding('memory', WARNING, f'{_gib(free)} available',
                       f'the embedded model wants {_gib(MIN_FREE_MEMORY_BYTES)}')
    return Finding('memory', OK, f'{_gib(free)} available')


def available_memory_bytes() -> int:
    """Return what programs can still take without swapping, as the kernel estimates it."""
    for line in Path('/proc/meminfo').read_text(encoding='ascii').splitlines():
        if line.startswith('MemAvailable:'):
            return int(line.split()[1]) * 1024
    return 0


def _run(
        command: list[str], environment: Mapping[str, str], text: str = ''
) -> 'subprocess.CompletedProcess[str]':
    """Run to the end; what cannot start or does not end counts as failed."""
    try:
        return subprocess.run(command, input=text, env=environment, cwd='/', capture_output=True,
                              text=True, timeout=PROBE_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, '', str(error))


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else 'no message'


def _gib(count_bytes: int) -> str:
    return f'{count_bytes / 1024**3:.1f} GiB'

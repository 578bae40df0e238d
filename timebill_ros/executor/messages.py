# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The messages between the node process and the engine process, and their frames.

A frame is a 4-byte little-endian length and that many bytes of JSON: ``{"type": name,
...fields}``. JSON and not pickle: the two sides may be different interpreters with different
libraries, and neither may run what the other sends. Times are nanoseconds of the steady clock,
which both processes share.
"""

from dataclasses import dataclass, field, is_dataclass
from enum import IntEnum
import functools
import json
import struct
import typing
from typing import Any, BinaryIO, Optional

from timebill_ros.query import Ending, Query, QueryTiming, Stage

MAX_FRAME_BYTES = 64 * 1024 * 1024
AUTO_TIERS = 'auto'      # in ``Load.tiers``: those that cost no memory beside the loaded weights
_HEADER = struct.Struct('<I')


# --- node to engine ------------------------------------------------------------------------------

@dataclass
class Load:
    """The first message: what to load, and where. Answer: Loading…, then Ready or LoadFailed."""

    model: str                               # directory, GGUF file, hub name, or "embedded"
    device: str = 'auto'                     # "auto", "cpu", "cuda", "cuda:1"
    dtype: str = 'auto'                      # "auto", "float32", "bfloat16", "float16"
    threads: int = 0                         # CPU threads; 0 = chosen by the engine
    max_context: int = 0                     # tokens per query, prompt + response; 0 = the model's
    n_max: int = 512                         # cap on any response
    max_batch: int = 4                       # sequences at once, 1..8; fewer where memory is short
    kv_memory_bytes: int = 0                 # memory for KV caches; 0 = what the machine has free
    realtime_priority: int = 0               # SCHED_FIFO of a GPU's engine thread; 0 = off
    gpu_memory_fraction: float = 0.9         # share of a GPU's memory that the engine may take
    prefill_chunk: int = 0                   # tokens per prefill chunk; 0 = chosen by the engine
    tiers: list[str] = field(default_factory=lambda: [AUTO_TIERS])  # and bf16, int8, int4
    prefill_tier: str = ''                   # of a CPU's prefill, or int16; "" = full precision
    tap_layer: int = 0                       # layers before the state to read; a predictor sets it
    predictor: str = 'default'               # of response lengths: a name or a path; "" = none
    allow_download: bool = False
    cache_dir: str = ''                      # models and profiles; "" = the user's cache directory
    policy: dict[str, Any] = field(default_factory=dict)  # fields of planner.PlannerConfig


@dataclass
class Submit:
    """A query to answer. Exactly one Finished comes back for it, also after a Drop."""

    query: Query


@dataclass
class Drop:
    """The node has ended this query (cancel, deadline): stop within one step or chunk."""

    query_id: str


@dataclass
class Adopt:
    """Plan with these coefficients from the next query on (``TimingCoefficients.to_dict``)."""

    coefficients: dict[str, Any]
    source: str                              # "topic", "file" or "profile"


@dataclass
class SetPolicy:
    """Plan with these fields of planner.PlannerConfig from the next query on."""

    policy: dict[str, Any]


@dataclass
class RunProfile:
    """Measure the model and fit the laws; the engine answers ProfileProgress…, then ProfileDone."""

    max_tokens: int = 0
    repeats: int = 0


@dataclass
class CancelProfile:
    """End the running profile after the point being measured; ProfileDone says it was canceled."""


@dataclass
class Shutdown:
    """End the process once the current step is done."""


# --- engine to node ------------------------------------------------------------------------------

@dataclass
class Loading:
    """Progress of the start; also a sign of life."""

    what: str
    fraction: float                          # 0..1


@dataclass
class ModelInfo:
    """What the engine serves."""

    name: str                                # for people
    key: str                                 # identity: name and hash of the configuration
    family: str                              # "llama", "qwen2", "qwen3", "mistral"
    device: str                              # device name, e.g. "NVIDIA H200"
    dtype: str
    tiers: list[str]                         # best quality first
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int                         # tokens, prompt and response
    n_max: int
    kv_bytes_per_token: int
    sampling: dict[str, Any]                 # the server's default sampling for this model
    engine_version: str
    max_batch: int = 1                       # sequences at once


@dataclass
class Ready:
    """The engine answers queries from now on."""

    info: ModelInfo
    coefficients: dict[str, Any]             # what it plans with (``TimingCoefficients.to_dict``)
    coefficients_source: str                 # "file" or "profile"
    load_s: float
    profile_s: float


@dataclass
class LoadFailed:
    """The engine cannot start; the process ends. ``error_msg`` names what to mend and how."""

    error_msg: str


@dataclass
class Alive:
    """Sign of life while there is nothing else to say, once a second; gauges for the status."""

    device_memory_bytes: int = 0
    busy_s: float = 0.0                      # seconds of model work since the start
    queued: int = 0
    running: int = 0


@dataclass
class Progress:
    """After every prefill chunk and every decode step of a query."""

    query_id: str
    stage: Stage
    text: str                                # new text since the last Progress
    n_generated: int
    predicted_finish_ns: int                 # steady clock, worst case; 0 = not known yet
    deadline_at_risk: bool
    sent_ns: int


@dataclass
class Planned:
    """The plan is made (after the prefill, or at a replan): the timing record so far."""

    query_id: str
    timing: QueryTiming


@dataclass
class Finished:
    """The engine has no more work for this query. ``text`` is the whole response."""

    query_id: str
    ending: Ending
    text: str
    timing: QueryTiming
    last_token_ns: int                       # steady clock; 0 = no token came out
    sent_ns: int = 0                         # when its work ended; 0 = it had not begun


@dataclass
class ProfileProgress:
    """One point of the profile is measured."""

    stage: str
    done: int
    total: int
    predicted_left_s: float


@dataclass
class ProfileDone:
    """The profile ended. ``error_msg`` is empty on success."""

    coefficients: Optional[dict[str, Any]]
    path: str
    error_msg: str
    canceled: bool = False


_TYPES = {
    cls.__name__: cls for cls in (
        Load, Submit, Drop, Adopt, SetPolicy, RunProfile, CancelProfile, Shutdown,
        Loading, Ready, LoadFailed, Alive, Progress, Planned, Finished, ProfileProgress,
        ProfileDone)
}


class ChannelClosed(Exception):
    """The other process closed its end, or died."""


def encode(message: Any) -> bytes:
    """Return the frame of a message."""
    # vars, not asdict: a deep copy would cost more than all the rest, for every token.
    fields = {'type': type(message).__name__, **vars(message)}
    body = json.dumps(fields, default=vars, ensure_ascii=False)
    data = body.encode('utf-8', 'surrogatepass')
    return _HEADER.pack(len(data)) + data


def write_message(stream: BinaryIO, message: Any) -> None:
    """Write one frame and flush it; raises ChannelClosed when nobody reads."""
    try:
        stream.write(encode(message))
        stream.flush()
    except (BrokenPipeError, ValueError) as error:
        raise ChannelClosed(str(error)) from error


def read_message(stream: BinaryIO) -> Any:
    """Read one frame; blocks. Raises ChannelClosed at the end, ValueError on a bad frame."""
    size, = _HEADER.unpack(_read_exactly(stream, _HEADER.size))
    if size > MAX_FRAME_BYTES:
        raise ValueError(f'frame of {size} bytes exceeds {MAX_FRAME_BYTES}')
    body = json.loads(_read_exactly(stream, size).decode('utf-8', 'surrogatepass'))
    cls = _TYPES.get(body.pop('type', None))
    if cls is None:
        raise ValueError('frame of an unknown type')
    return _build(cls, body)


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if data is None or len(data) < size:
        raise ChannelClosed('end of stream')
    return data


@functools.lru_cache(maxsize=None)
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(kind: Any, value: Any) -> Any:
    """Turn decoded JSON back into the annotated type; an unknown field is an error."""
    origin = typing.get_origin(kind)
    if origin is list:
        item, = typing.get_args(kind)
        return [_build(item, each) for each in value]
    if origin is typing.Union:
        inner = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return None if value is None else _build(inner[0], value)
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        return kind(value)
    if is_dataclass(kind):
        hints = _hints(kind)
        unknown = value.keys() - hints.keys()
        if unknown:
            raise ValueError(f'{kind.__name__} has no field {sorted(unknown)[0]!r}')
        return kind(**{name: _build(hints[name], item) for name, item in value.items()})
    return value

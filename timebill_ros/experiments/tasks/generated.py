# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Questions made from a seed: needle retrieval, counting, multi-hop, code, classes, a household robot.

Every set has at least ``SET_SIZE`` items; the texts around what matters grow from item to item,
from a few sentences to ``longest`` of them. The same arguments give the same items, on any machine.
"""

from collections.abc import Callable
import random

from timebill_ros.experiments.tasks import Item
from timebill_ros.experiments.tasks.words import (
    CLASSES, COLOURS, FILLER, FURNITURE, NAMES, OBJECTS, PASSWORDS, ROOMS, TIMES)

SET_SIZE = 36
DEFAULT_SEED = 7
LONGEST = 160           # sentences of about 20 tokens: close to half the context of 8,192
QUICK_LONGEST = 12
_SHORTEST = 4

Maker = Callable[[random.Random, int, str], Item]


def generated(longest: int = LONGEST, seed: int = DEFAULT_SEED, size: int = SET_SIZE) -> list[Item]:
    """Return ``size`` items of every set, those of a set from short to long."""
    items = []
    for name, make in SETS.items():
        drawn = random.Random(f'{seed} {name}')
        for number in range(size):
            share = number / max(1, size - 1)
            sentences = round(_SHORTEST * (longest / _SHORTEST) ** share)
            items.append(make(drawn, sentences, f'{name}/{number}'))
    return items


def _filler(drawn: random.Random, sentences: int) -> list[str]:
    return [drawn.choice(FILLER).format(
        name=drawn.choice(NAMES), room=drawn.choice(ROOMS), object=drawn.choice(OBJECTS),
        furniture=drawn.choice(FURNITURE), colour=drawn.choice(COLOURS)) for _ in range(sentences)]


def _hide(drawn: random.Random, facts: list[str], sentences: int) -> str:
    """Return filler with the facts in it, in their order."""
    text = _filler(drawn, sentences)
    places = sorted(drawn.randrange(len(text) + 1) for _ in facts)
    for place, fact in reversed(list(zip(places, facts))):
        text.insert(place, fact)
    return ' '.join(text)


def _needle(drawn: random.Random, sentences: int, item_id: str) -> Item:
    colour, word = drawn.choice(COLOURS), drawn.choice(PASSWORDS)
    text = _hide(drawn, [f'The password of the {colour} door is "{word}".'], sentences)
    prompt = (f'Read this log of a house.\n\n{text}\n\nWhat is the password of the {colour} door? '
              'Answer with the password only.')
    return Item(item_id, 'needle', 'class', prompt, (word,), 24, PASSWORDS)


def _counting(drawn: random.Random, sentences: int, item_id: str) -> Item:
    times, name = drawn.randrange(len(TIMES)), drawn.choice(NAMES)
    text = _hide(drawn, [f'{name} rang the bell.'] * (times + 1), sentences)
    prompt = (f'Read this log of a house.\n\n{text}\n\nDid {name} ring the bell {TIMES[0]}, '
              f'{TIMES[1]} or {TIMES[2]}? Answer with one of these only.')
    return Item(item_id, 'counting', 'class', prompt, (TIMES[times],), 24, TIMES)


def _multi_hop(drawn: random.Random, sentences: int, item_id: str) -> Item:
    thing, other = drawn.sample(OBJECTS, 2)
    box, other_box = drawn.sample(COLOURS, 2)
    room, other_room = drawn.sample(ROOMS, 2)
    facts = [
        f'The {thing} lies in the {box} box.', f'The {other} lies in the {other_box} box.',
        f'The {box} box stands in the {room}.', f'The {other_box} box stands in the {other_room}.']
    drawn.shuffle(facts)
    text = _hide(drawn, facts, sentences)
    prompt = (f'Read this log of a house.\n\n{text}\n\nIn which room is the {thing} that lies in a '
              'box? Answer with the name of the room only.')
    return Item(item_id, 'multi-hop', 'class', prompt, (room,), 24, ROOMS)


def _code(drawn: random.Random, sentences: int, item_id: str) -> Item:
    """Make a function whose body was seen once, far above it."""
    room, speed = drawn.choice(ROOMS), drawn.randrange(1, 90)
    right = f'    robot.drive("{room}", speed={speed})'
    helpers = []
    for number in range(max(1, sentences // 2)):
        place, seconds = drawn.choice(FURNITURE).replace(' ', '_'), drawn.randrange(1, 60)
        helpers.append(f'def look_at_{place}_{number}(robot):\n'
                       f'    robot.turn("{place}", seconds={seconds})\n')
    prompt = ('Please complete the code given below.\n'
              + '\n'.join([f'def go_to_{room}(robot):\n{right}\n', *helpers,
                           f'def go_to_{room}_again(robot):\n']) + 'Next line of code:\n')
    return Item(item_id, 'code', 'edit', prompt, (right,), 32)


def _classification(drawn: random.Random, sentences: int, item_id: str) -> Item:
    wanted = drawn.choice(list(CLASSES))
    shown = []
    for _ in range(max(len(CLASSES), sentences // 2)):
        name = drawn.choice(list(CLASSES))
        shown.append(f'"{drawn.choice(CLASSES[name][1:])}" is {name}.')
    drawn.shuffle(shown)
    prompt = ('Requests to a robot and their classes:\n' + '\n'.join(shown) + '\n\nWhich class has '
              f'the request "{CLASSES[wanted][0]}"? Is it {", ".join(CLASSES)}? Answer with the '
              'class only.')
    return Item(item_id, 'classification', 'class', prompt, (wanted,), 24, tuple(CLASSES))


def _robot(drawn: random.Random, sentences: int, item_id: str) -> Item:
    things, rooms = drawn.sample(OBJECTS, 3), drawn.sample(ROOMS, 3)
    facts = [f'The robot has seen the {thing} in the {room}.' for thing, room in zip(things, rooms)]
    text = _hide(drawn, facts, max(1, sentences // 4))
    name = drawn.choice(NAMES)
    prompt = (f'A household robot has this log.\n\n{text}\n\n{name} wants the {things[0]}. In '
              f'which room has the robot seen the {things[0]}? Answer with the name of the room, '
              'then say in one sentence what the robot does there.')
    return Item(item_id, 'household robot', 'class', prompt, (rooms[0],), 96, ROOMS)


SETS: dict[str, Maker] = {
    'needle': _needle, 'counting': _counting, 'multi-hop': _multi_hop, 'code': _code,
    'classification': _classification, 'robot': _robot}

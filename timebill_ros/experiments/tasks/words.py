# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of the generated questions."""

COLOURS = ('red', 'blue', 'green', 'yellow', 'white', 'black', 'orange', 'purple', 'brown', 'grey')
NAMES = ('Anna', 'Boris', 'Clara', 'David', 'Elena', 'Felix', 'Grace', 'Hugo', 'Irene', 'Jonas')
ROOMS = ('kitchen', 'bedroom', 'bathroom', 'garage', 'attic', 'cellar', 'study', 'hallway')
OBJECTS = ('cup', 'lamp', 'book', 'hammer', 'towel', 'radio', 'basket', 'clock', 'bottle', 'brush')
FURNITURE = ('table', 'shelf', 'sofa', 'cupboard', 'desk', 'window sill', 'chair', 'drawer')
PASSWORDS = (
    'Lantern', 'Meadow', 'Copper', 'Violin', 'Marathon', 'Pepper', 'Castle', 'Ribbon', 'Falcon',
    'Marble', 'Cactus', 'Puzzle')
TIMES = ('once', 'twice', 'three times')

# Filled with names, rooms, objects, furniture and colours; says nothing that is asked about.
FILLER = (
    '{name} walked through the {room} and looked at the {furniture} for a while.',
    'In the {room} somebody had left a {colour} {object} on the {furniture} since the morning.',
    '{name} told a long story about a {object} that had been lost in the {room} years ago.',
    'The light in the {room} was switched off, and it stayed quiet until {name} came back.',
    '{name} cleaned the {furniture}, moved the {object} a little, and opened the window.',
    'It rained in the afternoon, so {name} read in the {room} beside the {furniture}.')

# class: the request that is asked about, then those that are shown
CLASSES = {
    'navigation': (
        'Drive to the garage and wait there.', 'Go to the kitchen.', 'Follow me to the door.',
        'Come back to the hallway.', 'Move two metres to the left.'),
    'manipulation': (
        'Pick up the hammer from the shelf.', 'Lift the basket.', 'Put the cup on the table.',
        'Open the drawer.', 'Hand me the bottle.'),
    'question': (
        'What time does the shop close?', 'How warm is it outside?', 'Who rang the bell?',
        'Where did you see the radio?', 'When is the next train?'),
    'cleaning': (
        'Wipe the window sill.', 'Vacuum the carpet.', 'Mop the bathroom floor.',
        'Dust the lamp.', 'Sweep the cellar.')}

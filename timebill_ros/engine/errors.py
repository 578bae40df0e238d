# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in the engine room; every message is for the person who runs the robot."""


class EngineError(Exception):
    """Base of all errors that the engine raises on purpose."""


class ModelError(EngineError):
    """The model cannot be loaded: not found, not supported, not safe; and how to mend it."""


class PromptTooLong(EngineError):
    """The prompt plus one token exceeds the context."""


class PromptRefused(EngineError):
    """The model's chat template does not take the conversation: which field, and what it said."""


class OutOfMemory(EngineError):
    """The KV cache of a query does not fit: how much it needs and how much there is."""


class NotFinite(EngineError):
    """The model's output is no number."""

    def __init__(self) -> None:
        """Say what can be the cause."""
        super().__init__('what the model gives out is not a number (NaN or infinite): its weights '
                         'are broken, or too large for the dtype they are run in')

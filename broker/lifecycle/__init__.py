"""The life of models and of their workers, as a pure machine: ``Lifecycle``."""

from broker.lifecycle.effects import DropFolder, FindNames, LifecycleInstruction, Poll, PollAll, Remember, Watch
from broker.lifecycle.machine import Lifecycle
from broker.lifecycle.memory import Memory, restore, save

__all__ = [
    "DropFolder",
    "FindNames",
    "Lifecycle",
    "LifecycleInstruction",
    "Memory",
    "Poll",
    "PollAll",
    "Remember",
    "Watch",
    "restore",
    "save",
]

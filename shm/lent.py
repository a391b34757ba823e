"""Bytes of another process's arena that may be passed on to a third one, instead of a copy of them."""

from typing import Any, NamedTuple, Protocol

from conch.messages import Block


class OpenSegment(Protocol):
    """A mapped segment. ``descriptor`` is open as long as this object lives."""

    @property
    def number(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def descriptor(self) -> int: ...


class Lent(NamedTuple):
    """``block`` of ``segment``. The bytes stay as they are while ``hold`` is referred to."""

    block: Block
    segment: OpenSegment
    hold: Any

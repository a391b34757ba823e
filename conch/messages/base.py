"""Bases of all messages, and the protocol version that every HELLO carries."""

import msgspec

PROTOCOL_VERSION = 3


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of everything with a tag: the tag is the class name."""


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of what travels inside a message and needs no tag."""


Parameter = bool | int | float | str

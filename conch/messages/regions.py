"""Memory that clients registered, and the calls that register it. The broker's registry counts, others have copies."""

from typing import Literal

from conch.messages.base import Message, Record

RegionKind = Literal["system", "cuda"]


class Region(Record, frozen=True):
    """One registered region. ``number`` is random, 63 bits, never reused: its name in references, which mean ``nbytes``
    bytes from ``offset`` of what was opened.

    System regions have a ``key``. ``holder_pid`` has the memory open as ``descriptor``, and ``file`` is its device and
    inode, so that another process of this server can open the same file whatever its name means by now. CUDA regions
    have a ``device`` and a 64-byte ``handle`` instead.
    """

    kind: RegionKind
    name: str
    number: int
    offset: int
    nbytes: int
    key: str = ""
    holder_pid: int = 0
    descriptor: int = -1
    file: tuple[int, int] = (0, 0)
    device: int = 0
    handle: bytes = b""


class RegionTable(Message, frozen=True):
    """Broker to requesters, whole, on every change and after each ``Welcome``. ``revision`` is counted together with
    that of ``ModelTable``."""

    epoch: int
    revision: int
    regions: tuple[Region, ...]


class TableSeen(Message, frozen=True):
    """Requester to broker: the tables up to ``revision`` are in use here. The broker answers a call that changed a
    table once every requester has said so, so that a client may use what it was told anywhere at once."""

    epoch: int
    revision: int


class RegisterRegion(Message, frozen=True):
    """Requester to broker. Sizes in bytes."""

    call: int
    name: str
    key: str
    offset: int
    nbytes: int


class RegisterCudaRegion(Message, frozen=True):
    call: int
    name: str
    handle: bytes
    device: int
    nbytes: int


class UnregisterRegions(Message, frozen=True):
    """``name`` empty: all of this kind."""

    call: int
    kind: RegionKind
    name: str = ""

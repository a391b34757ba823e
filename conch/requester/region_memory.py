"""The clients' memory that a requester has open for its workers, and how long it keeps it open."""

import logging
import os
from collections.abc import Callable, Iterator

import msgspec

from conch.errors import NotFound, Overloaded, Unsupported
from conch.messages import ClientRegion, OutputTarget, Region, SegmentAdded, TensorReference
from conch.requester.inference import InferenceCall, RegionWindow, TensorInput
from shm.region_files import open_held

logger = logging.getLogger("conch.requester.region_memory")

_CUDA_COMES_LATER = "CUDA shared memory cannot be used in requests yet: the GPU data path comes later"


class _Opened:
    """One region. ``uses``: unfinished requests that refer to it. ``listed``: it is still registered."""

    __slots__ = ("descriptor", "listed", "region", "uses")

    def __init__(self, region: Region, descriptor: int) -> None:
        self.region = region
        self.descriptor = descriptor
        self.listed = True
        self.uses = 0

    def announcement(self) -> tuple[SegmentAdded, int]:
        region = self.region
        message = SegmentAdded(region.number, region.nbytes, client=True, offset=region.offset)
        return message, self.descriptor


class RegionMemory:
    """System regions by number. Each is opened when it is registered, and closed when it is registered no more and no
    request of ours refers to it. Its own descriptor, so that no other process has to live on for it.

    ``on_opened`` gets what workers are to be told, and the descriptor; ``on_closed`` the number.
    """

    def __init__(self, on_opened: Callable[[SegmentAdded, int], None], on_closed: Callable[[int], None]) -> None:
        self._on_opened = on_opened
        self._on_closed = on_closed
        self._opened: dict[int, _Opened] = {}
        #: registered, but not open here
        self._missing: dict[int, Region] = {}
        self._cuda: tuple[Region, ...] = ()

    def update(self, regions: tuple[Region, ...]) -> None:
        """``regions`` are all that are registered now."""
        self._cuda = tuple(region for region in regions if region.kind == "cuda")
        listed = {region.number: region for region in regions if region.kind == "system"}
        for number, opened in list(self._opened.items()):
            opened.listed = number in listed
            self._close_if_done(opened)
        self._missing = {number: region for number, region in listed.items() if number not in self._opened}
        self.open_missing()
        if self._missing:
            logger.warning("%s registered shared memory regions cannot be opened at the moment", len(self._missing))

    def open_missing(self) -> None:
        """Tries (again) to open what is registered: the process may have had no descriptor left for it."""
        for number, region in list(self._missing.items()):
            try:
                file = open_held(region.holder_pid, region.descriptor, region.file)
            except OSError as error:
                logger.debug("shared memory region '%s' cannot be opened: %s", region.name, error.strerror)
                continue
            del self._missing[number]
            opened = self._opened[number] = _Opened(region, file.descriptor)
            self._on_opened(*opened.announcement())

    @property
    def held(self) -> tuple[Region, ...]:
        """What a new broker restores its registry from: what is registered and open here."""
        pid = os.getpid()
        system = (
            msgspec.structs.replace(opened.region, holder_pid=pid, descriptor=opened.descriptor)
            for opened in self._opened.values()
            if opened.listed
        )
        return (*system, *self._cuda)

    def announcements(self) -> Iterator[tuple[SegmentAdded, int]]:
        """For a worker that has just connected."""
        return (opened.announcement() for opened in self._opened.values())

    # -------------------------------------------------------------------------------------------------------- requests

    def take(self, call: InferenceCall) -> tuple[int, ...]:
        """Counts a use of every region that the call names and returns their numbers, for ``release``.

        Raises ``Unsupported`` for CUDA regions, ``NotFound``, and ``Overloaded`` for a region that cannot be opened
        here at the moment; nothing is counted then.
        """
        windows = [tensor.region for tensor in call.inputs if tensor.region is not None]
        windows += call.targets.values()
        for window in windows:
            self._check(window)
        numbers = tuple({window.number for window in windows})
        for number in numbers:
            self._opened[number].uses += 1
        return numbers

    def _check(self, window: RegionWindow) -> None:
        if window.cuda:
            raise Unsupported(_CUDA_COMES_LATER)
        if window.number in self._missing:
            raise Overloaded(f"shared memory region '{window.name}' cannot be used at the moment; try again")
        if window.number not in self._opened:
            raise NotFound(f"Unable to find shared memory region: '{window.name}'")

    def overwrites_inputs(self, call: InferenceCall) -> bool:
        """Whether an output is to go where an input lies: run again after a worker's death, the call might read what
        the first run wrote. Two regions may be of one file, so their names do not tell. To be asked after ``take``."""
        inputs = [self._extent(tensor.region) for tensor in call.inputs if tensor.region is not None]
        return any(
            file == input_file and start < input_end and input_start < end
            for file, start, end in map(self._extent, call.targets.values())
            for input_file, input_start, input_end in inputs
        )

    def _extent(self, window: RegionWindow) -> tuple[tuple[int, int], int, int]:
        """The file that the window lies in, and its first byte there and the one behind its last."""
        region = self._opened[window.number].region
        start = region.offset + window.offset
        return region.file, start, start + window.nbytes

    def release(self, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            opened = self._opened.get(number)
            if opened is not None:
                opened.uses -= 1
                self._close_if_done(opened)

    def _close_if_done(self, opened: _Opened) -> None:
        if not opened.listed and not opened.uses:
            number = opened.region.number
            del self._opened[number]
            os.close(opened.descriptor)
            self._on_closed(number)

    def close(self) -> None:
        """Idempotent; calls nobody."""
        for opened in self._opened.values():
            os.close(opened.descriptor)
        self._opened.clear()
        self._missing.clear()


def reference(window: RegionWindow) -> ClientRegion:
    return ClientRegion(window.number, window.offset, window.nbytes)


def place(tensor: TensorInput) -> TensorReference | None:
    """Where an input lies that is not to be copied."""
    if tensor.region is not None:
        return reference(tensor.region)
    return None if tensor.lent is None else tensor.lent.block


def output_targets(targets: dict[str, RegionWindow]) -> tuple[OutputTarget, ...]:
    return tuple(OutputTarget(name, reference(window)) for name, window in targets.items())

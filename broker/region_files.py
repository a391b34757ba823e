"""The files behind the registry: what the broker has open, so that every requester can open the same."""

import errno
import logging
import os
import resource

import msgspec

from broker.regions import MAX_REGIONS, Registry, cannot_open, invalid
from conch.messages import Fault, Region, RegisterCudaRegion, RegisterRegion, UnregisterRegions
from shm.region_files import RegionFile, is_own_segment, open_held, open_key

logger = logging.getLogger("conch.broker.region_files")

_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Regions:
    """Carries out what clients want with their regions. Opening takes microseconds and never waits, so it is done on
    the broker's loop."""

    def __init__(self) -> None:
        # every process of the server holds as many, and needs descriptors for its connections
        soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        capacity = MAX_REGIONS if soft_limit == resource.RLIM_INFINITY else min(MAX_REGIONS, soft_limit // 4)
        self._registry = Registry(_random_number, capacity)

    @property
    def registered(self) -> tuple[Region, ...]:
        return self._registry.regions

    def register(self, call: RegisterRegion | RegisterCudaRegion) -> Fault | None:
        """None: it is registered now."""
        if isinstance(call, RegisterCudaRegion):
            return self._registry.add_cuda(call)
        fault = self._registry.refusal(call)
        if fault is not None:
            return fault
        try:
            opened = open_key(call.key)
        except (OSError, ValueError) as error:
            return _why_not_open(call, error)
        try:
            fault = self._add(call, opened)
        except OSError as error:
            fault = _why_not_open(call, error)
        if fault is not None:
            os.close(opened.descriptor)
        return fault

    def _add(self, call: RegisterRegion, opened: RegionFile) -> Fault | None:
        if is_own_segment(call.key, opened.file):
            logger.error("a client asked for the server's own memory as region '%s'", call.name)
            return invalid(call)
        return self._registry.add(call, os.getpid(), *opened)

    def unregister(self, call: UnregisterRegions) -> bool:
        """Whether something was registered under this name."""
        removed = self._registry.remove(call)
        _close(removed)
        return bool(removed)

    def restore(self, listed: tuple[Region, ...]) -> bool:
        """Takes over what a requester has had open since before this broker's time. False if that changes nothing."""
        changed = False
        for region in listed:
            if not self._registry.lacks(region):
                continue
            if region.kind == "system":
                try:
                    opened = open_held(region.holder_pid, region.descriptor, region.file)
                except OSError as error:
                    logger.warning("region '%s' cannot be taken over: %s", region.name, error.strerror)
                    continue
                region = msgspec.structs.replace(region, holder_pid=os.getpid(), descriptor=opened.descriptor)
            self._registry.restore(region)
            changed = True
        return changed

    def close(self) -> None:
        _close(self._registry.regions)


def _why_not_open(call: RegisterRegion, error: OSError | ValueError) -> Fault:
    logger.info("the memory for region '%s' cannot be opened: %s", call.name, error)
    if isinstance(error, OSError) and error.errno in _NO_DESCRIPTOR:
        return Fault("Overloaded", "the server has no room for another shared memory region; try again later")
    return cannot_open(call)


def _close(regions: list[Region] | tuple[Region, ...]) -> None:
    for region in regions:
        if region.kind == "system":
            os.close(region.descriptor)


def _random_number() -> int:
    return int.from_bytes(os.urandom(8), "little") >> 1 or 1

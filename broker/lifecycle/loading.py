"""Copies on their way to READY: at most so many at a time, each in the order complete, configure, load."""

import logging
from collections import deque
from collections.abc import Callable

from broker.instructions import ToControl
from broker.lifecycle.effects import LifecycleInstruction
from broker.lifecycle.instances import Instance
from broker.lifecycle.models import Copy, Slot
from broker.lifecycle.roster import Roster
from broker.repository.completion import complete
from conch.errors import ConchError, to_fault
from conch.messages import Configured, Drain, Fault

logger = logging.getLogger("conch.broker.lifecycle")


class Loader:
    """``cap``: copies that load at a time (``--model-load-thread-count``). ``retries``: how often a copy that failed is
    tried again. ``recall`` gives the completed configuration that the former broker had for a copy, if any."""

    def __init__(
        self,
        roster: Roster,
        out: list[LifecycleInstruction],
        cap: int,
        retries: int,
        recall: Callable[[Copy], str | None],
    ) -> None:
        self._roster = roster
        self._out = out
        self._cap = cap
        self._retries = retries
        self._recall = recall
        self._pending: deque[Copy] = deque()
        self._loading: list[Copy] = []

    def add(self, copy: Copy) -> None:
        """A copy that needs no worker of its own is loaded at once."""
        if copy.own:
            self._pending.append(copy)
        else:
            copy.state = "loaded"

    def admit(self, now: float) -> None:
        """Starts what may start, and goes on with what waited for a launcher."""
        if not self._roster.launcher_present:
            return
        while self._pending and len(self._loading) < self._cap:
            copy = self._pending.popleft()
            copy.state = "loading"
            copy.tries += 1
            self._loading.append(copy)
        for copy in self._loading:
            self.advance(copy, now)

    def advance(self, copy: Copy, now: float) -> None:
        """Gives every instance that may have one a worker. Does nothing without a launcher, nor while the process that
        has completed the configuration still lives: a model may use there what it can use but once."""
        if not self._roster.launcher_present or any(instance.state == "completed" for instance in copy.own):
            return
        recalled = None if copy.is_complete else self._recall(copy)
        if recalled is not None:
            copy.configure(recalled)
        if copy.is_complete:
            self._roster.claim(copy, now)
        waiting = [instance for instance in copy.own if instance.state == "waiting"]
        if copy.is_complete:
            for instance in waiting:
                self._roster.spawn(instance, now)
        elif len(waiting) == len(copy.own):
            self._roster.spawn(waiting[0], now)

    def completed(self, instance: Instance, config_json: str, ends: bool, now: float) -> Fault | None:
        """The backend's answer: the other instances may come; with ``ends`` once this worker has ended. Returns why the
        configuration is not good."""
        copy = instance.copy
        try:
            copy.configure(complete(copy.snapshot, config_json))
        except ConchError as error:
            return to_fault(error)
        if ends:
            instance.state = "completed"
            self._out.append(ToControl(instance.worker, Drain()))
            self._roster.end(self._roster.workers[instance.worker], now, by_itself=True)
            return None
        instance.state = "loading"
        self._out.append(ToControl(instance.worker, Configured(copy.config_json, copy.hash)))
        self.advance(copy, now)
        return None

    def take_loaded(self) -> list[Copy]:
        """Copies whose last instance has become ready since the last call."""
        loaded = [copy for copy in self._loading if all(instance.state == "ready" for instance in copy.own)]
        for copy in loaded:
            copy.state = "loaded"
            self._loading.remove(copy)
        return loaded

    def reopen(self, copy: Copy) -> None:
        """An instance that had loaded died before the others were ready: it loads again."""
        if copy.state == "loaded":
            copy.state = "loading"
            self._loading.append(copy)

    def failed(self, copy: Copy, fault: Fault, slot: Slot, now: float) -> bool:
        """One instance did not make it: ends the others. False if the copy is tried again."""
        logger.error("failed to load '%s' version %s: %s", copy.name, copy.version, fault.message)
        self.stop(copy, slot, now)
        if copy.tries <= self._retries:
            for instance in copy.own:
                instance.state = "waiting"
                instance.fault = None
            copy.state = "pending"
            self._pending.append(copy)
            return False
        copy.fault = fault
        return True

    def stop(self, copy: Copy, slot: Slot, now: float) -> None:
        """Ends a copy's workers, whatever it was doing."""
        if copy in self._loading:
            self._loading.remove(copy)
        if copy in self._pending:
            self._pending.remove(copy)
        copy.state = "gone"
        for instance in copy.own:
            fault = instance.fault
            worker = self._roster.dismiss(instance, slot)
            if worker is not None:
                self._roster.end(worker, now, by_itself=fault is not None)

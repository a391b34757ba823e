"""The requester's state machine: everything that the protocol allows, at random."""

import random
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from conch.messages import Cancel, Lease, Lost, Rejected, Request, Response, Retired, Sequence, Unwelcome
from conch.requester.pending import Deliver, Entry, Fail, FreeInputs, GiveBack, Instruction, Send
from tests.requester.test_pending import CAUSE, WELCOME, new_entry, new_pending


@dataclass
class Told:
    """What was seen of one request from outside."""

    entry: Entry
    read: bool = False  # a broker or worker may read its inputs
    answered: int = 0
    freed: int = 0
    attempt: int = 1
    responded: bool = False
    gone: bool = False  # the caller


class World:
    """Callers, a broker and workers who may do everything that the protocol allows, at any moment, also late and twice.

    What the machine tells them is checked as it comes.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pending = new_pending(max_inflight=1000)
        self.now = 0.0
        self.told: dict[int, Told] = {}
        self.leases: dict[int, int] = {}  # times that each was given back or handed on
        self.released: set[int] = set()  # whose inputs may be freed because of what happens now
        self.sending_works = True

    def coin(self, odds: float = 0.5) -> bool:
        return self.random.random() < odds

    def carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Send(Request() as request):
                    told = self.told[request.id]
                    assert request.attempt == told.attempt and not told.freed and not told.gone and not told.read
                    assert not told.responded
                    if self.sending_works:
                        told.read = True
                    else:
                        self.pending.not_sent(request, self.now)
                case Send(Cancel(id=id)):
                    assert self.told[id].read
                case Send():
                    pass
                case Deliver():
                    told = self.told[instruction.response.id]
                    assert told.entry is instruction.entry and not told.gone and not told.answered
                    told.answered += instruction.response.final
                    told.responded = True
                    self.count(instruction.response.lease)
                case Fail():
                    told = self.told[instruction.entry.request.id]
                    assert not told.gone
                    told.answered += 1
                case FreeInputs():
                    id = instruction.entry.request.id
                    assert not self.told[id].read or id in self.released
                    self.told[id].freed += 1
                case GiveBack():
                    self.count(instruction.lease)
        self.released = set()
        self.check()

    def count(self, lease: Lease | None) -> None:
        if lease is not None:
            self.leases[lease.number] += 1

    def check(self) -> None:
        assert all(told.answered <= 1 and told.freed <= 1 for told in self.told.values())
        assert all(times == 1 for times in self.leases.values())
        assert len(self.pending) == sum(not told.freed for told in self.told.values())

    def some(self) -> Told:
        """Mostly a request that a broker or worker has, sometimes one of the past."""
        known = [told for told in self.told.values() if told.read and not told.freed]
        return self.random.choice(known if known and self.coin(0.9) else list(self.told.values()))

    def step(self) -> None:
        names = ["submit", "submit", "caller_goes", "broker", "time_passes"]
        if self.told:
            names += ["response", "response", "response", "rejected", "retired", "lost", "lost"]
        getattr(self, self.random.choice(names))()

    def submit(self) -> None:
        sequence = Sequence(1, False, False) if self.coin(0.1) else None
        deadline = self.now + self.random.uniform(0, 30) if self.coin(0.2) else None
        entry = new_entry(self.pending, self.coin(0.9), sequence=sequence, deadline=deadline)
        self.told[entry.request.id] = Told(entry)
        self.carry_out(self.pending.submit(entry, self.now))

    def caller_goes(self) -> None:
        waiting = [id for id, told in self.told.items() if not told.answered]
        if waiting:
            id = self.random.choice(waiting)
            self.told[id].gone = True
            self.carry_out(self.pending.abandon(id))

    def broker(self) -> None:
        match self.random.choice(["up", "up", "connected", "disconnected", "unwelcome", "works", "fails"]):
            case "up":
                self.carry_out(self.pending.connected(self.now))
                self.carry_out(self.pending.welcomed(WELCOME))
            case "connected":
                self.carry_out(self.pending.connected(self.now))
            case "disconnected":
                self.pending.disconnected(self.now)
            case "unwelcome":
                self.carry_out(self.pending.unwelcome(Unwelcome(8), self.now))
            case "works":
                self.sending_works = True
            case "fails":
                self.sending_works = self.coin(0.3)

    def response(self) -> None:
        told = self.some()
        id = told.entry.request.id
        is_final, held = self.coin(0.7), self.coin(0.2)
        stale = not told.read or self.coin(0.2)
        lease = None
        if self.coin(0.7):
            lease = Lease(1, 1, len(self.leases))
            self.leases[lease.number] = 0
        if is_final and not held and not stale:
            self.released.add(id)
        attempt = told.attempt + self.random.choice([-1, 1]) if stale else told.attempt
        self.carry_out(self.pending.response(Response(id, attempt, 0, is_final, lease=lease, inputs_held=held)))

    def rejected(self) -> None:
        told = self.some()
        id = told.entry.request.id
        stale = not told.read or self.coin(0.3)
        if not stale:
            self.released.add(id)
        self.carry_out(self.pending.rejected(Rejected(id, told.attempt - stale, CAUSE)))

    def retired(self) -> None:
        told = self.some()
        id = told.entry.request.id
        if told.read:
            self.released.add(id)
            self.carry_out(self.pending.retired(Retired((id, 10_000))))

    def lost(self) -> None:
        told = self.some()
        id = told.entry.request.id
        worker = self.random.choice(["", "w"])
        stale = not told.read or self.coin(0.2)
        attempt = told.attempt - stale
        if not stale and not told.freed:
            self.released.add(id)
            told.read = False
            told.attempt += bool(worker)
        message = Lost(worker, (id,), self.coin(0.3), CAUSE, (attempt,))
        self.carry_out(self.pending.lost(message, self.now))
        assert told.freed or told.entry.request.attempt == told.attempt

    def time_passes(self) -> None:
        self.now += self.random.choice([0.1, 1.0, 15.0, 70.0])
        self.carry_out(self.pending.tick(self.now))

    def finish(self) -> None:
        """Once a broker answers everything, nothing is left."""
        self.sending_works = True
        self.carry_out(self.pending.connected(self.now))
        self.carry_out(self.pending.welcomed(WELCOME))
        for id, told in self.told.items():
            if not told.freed:
                self.released.add(id)
                self.carry_out(self.pending.response(Response(id, told.attempt, 0, True)))
        assert len(self.pending) == 0
        assert all(told.answered == 1 or told.gone for told in self.told.values())
        assert self.pending.tick(self.now + 1000) == []


@given(seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_everything_in_any_order(seed: int) -> None:
    world = World(seed)
    for _ in range(150):
        world.step()
    world.finish()

"""The requester's state machine: single cases that the design names."""

import pytest

from conch.errors import NotReady, Overloaded
from conch.messages import (
    Cancel,
    Fault,
    Lease,
    Lost,
    Rejected,
    Request,
    RequesterHello,
    Response,
    Retired,
    Sequence,
    Unwelcome,
    Welcome,
)
from conch.requester import pending as machine
from conch.requester.pending import Deliver, Entry, Fail, FreeInputs, GiveBack, Pending, Send

CAUSE = Fault("WorkerDied", "the worker died of signal 9")
WELCOME = Welcome(1, 7)


def new_pending(max_inflight: int = 100) -> Pending:
    return Pending("me", "http", 4711, max_inflight, 0.0)


def welcomed(max_inflight: int = 100) -> Pending:
    pending = new_pending(max_inflight)
    pending.connected(0.0)
    pending.welcomed(WELCOME)
    return pending


def new_entry(pending: Pending, idempotent: bool = True, **fields: object) -> Entry:
    request = Request(pending.new_id(), 1, "m", 1, 1, "", (), **fields)  # type: ignore[arg-type]
    return Entry(request, idempotent)


def submitted(pending: Pending, idempotent: bool = True, **fields: object) -> Entry:
    entry = new_entry(pending, idempotent, **fields)
    assert pending.submit(entry, 0.0) == [Send(entry.request)]
    return entry


def final(entry: Entry, **fields: object) -> Response:
    return Response(entry.request.id, entry.request.attempt, 0, True, **fields)  # type: ignore[arg-type]


def part(entry: Entry, index: int, **fields: object) -> Response:
    return Response(entry.request.id, entry.request.attempt, index, False, **fields)  # type: ignore[arg-type]


def ended(entry: Entry, why: str) -> list[machine.Instruction]:
    """What a loss leads to that is the end of a request."""
    return [FreeInputs(entry), Fail(entry, Fault("WorkerDied", f"{CAUSE.message}; {why}"))]


def lost(entry: Entry, worker: str = "w", alone: bool = False) -> Lost:
    return Lost(worker, (entry.request.id,), alone, CAUSE, (entry.request.attempt,))


class TestAnswers:
    def test_final_response_frees_and_answers(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        response = final(entry, lease=Lease(1, 2, 3))
        assert pending.response(response) == [FreeInputs(entry), Deliver(entry, response)]
        assert len(pending) == 0

    def test_response_of_another_attempt_gives_its_lease_back(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        stale = Response(entry.request.id, 2, 0, True, lease=Lease(1, 2, 3))
        assert pending.response(stale) == [GiveBack(Lease(1, 2, 3))]
        assert len(pending) == 1

    def test_response_to_an_abandoned_request_frees_and_gives_back(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        assert pending.abandon(entry.request.id) == [Send(Cancel("me", entry.request.id))]
        assert pending.abandon(entry.request.id) == []
        assert pending.response(final(entry, lease=Lease(1, 2, 3))) == [FreeInputs(entry), GiveBack(Lease(1, 2, 3))]

    def test_inputs_held_waits_for_retired(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        response = final(entry, inputs_held=True)
        assert pending.response(response) == [Send(Cancel("me", entry.request.id)), Deliver(entry, response)]
        assert pending.retired(Retired((entry.request.id,))) == [FreeInputs(entry)]

    def test_retired_without_an_answer_is_answered_all_the_same(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        fail, freed = pending.retired(Retired((entry.request.id, 99)))
        assert isinstance(fail, Fail) and fail.fault.kind == "Internal"
        assert freed == FreeInputs(entry)

    def test_rejected_matches_the_attempt(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        fault = Fault("Overloaded", "Exceeds maximum queue size")
        assert pending.rejected(Rejected(entry.request.id, 2, fault)) == []
        assert pending.rejected(Rejected(entry.request.id, 1, fault)) == [FreeInputs(entry), Fail(entry, fault)]


class TestStreams:
    """More than one response to a request."""

    def test_every_response_is_delivered_and_the_last_one_frees(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        for index in range(3):
            more = part(entry, index, lease=Lease(1, 2, index))
            assert pending.response(more) == [Deliver(entry, more)]
        error = part(entry, 3, error=CAUSE)
        assert pending.response(error) == [Deliver(entry, error)]
        last = final(entry)
        assert pending.response(last) == [FreeInputs(entry), Deliver(entry, last)]
        assert pending.response(part(entry, 5, lease=Lease(1, 2, 5))) == [GiveBack(Lease(1, 2, 5))]

    def test_what_comes_after_the_caller_went_is_given_back(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        pending.response(part(entry, 0))
        assert pending.abandon(entry.request.id) == [Send(Cancel("me", entry.request.id))]
        assert pending.response(part(entry, 1, lease=Lease(1, 2, 1))) == [GiveBack(Lease(1, 2, 1))]
        assert pending.response(part(entry, 2, error=CAUSE)) == []
        assert pending.retired(Retired((entry.request.id,))) == [FreeInputs(entry)]

    def test_deadline_between_two_responses(self) -> None:
        pending = welcomed()
        entry = submitted(pending, deadline=3.0)
        pending.response(part(entry, 0))
        assert pending.tick(3.0) == [Fail(entry, machine.DEADLINE_PASSED), Send(Cancel("me", entry.request.id))]
        assert pending.response(part(entry, 1)) == []
        assert pending.response(final(entry)) == [FreeInputs(entry)]

    def test_worker_that_dies_between_two_responses(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        pending.response(part(entry, 0))
        assert pending.lost(lost(entry), 1.0) == ended(entry, "the stream ends here, after 1 response")

    def test_inputs_that_a_model_still_reads_after_the_last_one(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        pending.response(part(entry, 0))
        last = final(entry, inputs_held=True)
        assert pending.response(last) == [Send(Cancel("me", entry.request.id)), Deliver(entry, last)]
        assert pending.retired(Retired((entry.request.id,))) == [FreeInputs(entry)]


class TestLost:
    def test_is_submitted_again_with_a_raised_attempt(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        (send,) = pending.lost(lost(entry, alone=True), 1.0)
        assert isinstance(send, Send) and isinstance(send.message, Request)
        assert send.message.attempt == 2

    def test_second_death_alone_convicts(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        pending.lost(lost(entry), 1.0)
        why = "the request was run 2 times and is not run again; the model's log has the details"
        assert pending.lost(lost(entry, alone=True), 2.0) == ended(entry, why)

    def test_restarted_broker_gets_it_under_the_same_attempt(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        assert pending.lost(lost(entry, worker=""), 1.0) == [Send(entry.request)]
        assert entry.request.attempt == 1

    def test_that_never_ends_is_ended(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        for _ in range(machine.MAX_LOSSES):
            assert pending.lost(lost(entry, worker=""), 1.0) == [Send(entry.request)]
        why = f"the request was lost {machine.MAX_LOSSES + 1} times and is not tried again"
        assert pending.lost(lost(entry, worker=""), 1.0) == ended(entry, why)

    @pytest.mark.parametrize(
        ("sequence", "idempotent", "responses", "why"),
        [
            (Sequence(5, True, False), True, 0, "its sequence is lost with it and has to be started again"),
            (None, False, 0, "the request is not run again, because it may run only once"),
            (None, True, 1, "the stream ends here, after 1 response"),
            (None, True, 3, "the stream ends here, after 3 responses"),
        ],
    )
    def test_is_answered_where_it_must_not_run_twice(
        self, sequence: Sequence | None, idempotent: bool, responses: int, why: str
    ) -> None:
        pending = welcomed()
        entry = submitted(pending, idempotent=idempotent, sequence=sequence)
        for index in range(responses):
            pending.response(part(entry, index))
        assert pending.lost(lost(entry), 1.0) == ended(entry, why)

    def test_of_an_earlier_attempt_is_ignored(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        first = lost(entry)
        pending.lost(first, 1.0)
        assert pending.lost(first, 1.0) == []
        assert entry.request.attempt == 2

    def test_of_an_abandoned_request_frees_it(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        pending.abandon(entry.request.id)
        assert pending.lost(lost(entry), 1.0) == [FreeInputs(entry)]


class TestNoBroker:
    def test_requests_are_held_and_sent_in_order(self) -> None:
        pending = new_pending()
        entries = [new_entry(pending) for _ in range(3)]
        assert [pending.submit(entry, 0.0) for entry in entries] == [[], [], []]
        (hello,) = pending.connected(1.0)
        assert isinstance(hello, Send) and isinstance(hello.message, RequesterHello)
        assert hello.message.awaited == ()
        assert pending.welcomed(WELCOME) == [Send(entry.request) for entry in entries]
        assert pending.welcomed(WELCOME) == []

    def test_held_request_is_answered_after_ten_seconds(self) -> None:
        pending = new_pending()
        entry = new_entry(pending)
        pending.submit(entry, 5.0)
        assert pending.tick(14.9) == []
        assert pending.tick(15.0) == [FreeInputs(entry), Fail(entry, machine.NO_BROKER)]

    def test_held_request_is_dropped_when_its_caller_goes(self) -> None:
        pending = new_pending()
        entry = new_entry(pending)
        pending.submit(entry, 0.0)
        assert pending.abandon(entry.request.id) == [FreeInputs(entry)]
        pending.connected(1.0)
        assert pending.welcomed(WELCOME) == []

    def test_hello_lists_submitted_and_abandoned(self) -> None:
        pending = welcomed()
        waiting, abandoned = submitted(pending), submitted(pending)
        pending.abandon(abandoned.request.id)
        pending.disconnected(1.0)
        pending.submit(new_entry(pending), 1.0)
        (hello,) = pending.connected(2.0)
        assert isinstance(hello, Send) and isinstance(hello.message, RequesterHello)
        assert [awaited.id for awaited in hello.message.awaited] == [waiting.request.id, abandoned.request.id]

    def test_new_broker_is_told_again_what_is_cancelled(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        pending.disconnected(1.0)
        assert pending.abandon(entry.request.id) == []
        pending.connected(2.0)
        assert pending.welcomed(WELCOME) == [Send(Cancel("me", entry.request.id))]

    def test_unwelcome_is_followed_by_one_hello(self) -> None:
        pending = welcomed()
        (hello,) = pending.unwelcome(Unwelcome(8), 1.0)
        assert isinstance(hello, Send) and isinstance(hello.message, RequesterHello)
        assert pending.unwelcome(Unwelcome(8), 1.0) == []

    def test_unanswered_hello_is_repeated(self) -> None:
        pending = new_pending()
        pending.connected(1.0)
        assert pending.tick(1.5) == []
        (hello,) = pending.tick(2.0)
        assert isinstance(hello, Send) and isinstance(hello.message, RequesterHello)

    def test_what_could_not_be_sent_is_held_and_sent_later(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        pending.not_sent(entry.request, 1.0)
        assert pending.held == 1
        assert pending.tick(1.5) == [Send(entry.request)]

    def test_long_outage_answers_what_was_submitted(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        pending.disconnected(1.0)
        assert pending.tick(60.9) == []
        assert pending.tick(61.0) == [Fail(entry, machine.NO_BROKER)]
        assert pending.tick(62.0) == []
        assert pending.response(final(entry, lease=Lease(1, 2, 3))) == [FreeInputs(entry), GiveBack(Lease(1, 2, 3))]


class TestBounds:
    def test_in_flight(self) -> None:
        pending = welcomed(max_inflight=2)
        for _ in range(2):
            pending.check_capacity()
            submitted(pending)
        with pytest.raises(Overloaded):
            pending.check_capacity()

    def test_held(self) -> None:
        pending = new_pending(max_inflight=100_000)
        for _ in range(machine.MAX_HELD):
            pending.check_capacity()
            pending.submit(new_entry(pending), 0.0)
        with pytest.raises(Overloaded):
            pending.check_capacity()

    def test_after_close(self) -> None:
        pending = welcomed()
        entry = submitted(pending)
        assert pending.close() == [FreeInputs(entry), Fail(entry, machine.CLOSING)]
        with pytest.raises(NotReady):
            pending.check_capacity()

    def test_deadline(self) -> None:
        pending = welcomed()
        entry = submitted(pending, deadline=3.0)
        assert pending.tick(2.9) == []
        assert pending.tick(3.0) == [Fail(entry, machine.DEADLINE_PASSED), Send(Cancel("me", entry.request.id))]

    def test_deadlines_of_finished_requests_do_not_pile_up(self) -> None:
        pending = welcomed()
        for _ in range(3000):
            pending.response(final(submitted(pending, deadline=1e9)))
        pending.tick(1.0)
        assert len(pending._deadlines) == 0

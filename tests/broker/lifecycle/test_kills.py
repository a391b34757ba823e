"""Workers that are killed for what they did: the reason travels, is shown, counted, and survives a launcher."""

import pytest

from broker.fault_metrics import COMMON_CAUSES
from broker.instructions import ToControl, ToLauncher
from broker.lifecycle.instances import CRASH_BUDGET, WELL_S
from conch.messages import Died, Drain, Fault, Kill
from tests.broker.lifecycle.support import READY, available, families, instructions, loaded
from tests.broker.lifecycle.world import World, snapshot

TIMED_OUT = "ran longer than its EXECUTION_TIMEOUT_S of 2 s and was killed"
DUMP = (
    "Fatal Python error: Aborted\n\n"
    "Current thread 0x00007fe68abd9b80 (most recent call first):\n"
    '  File "/srv/models/m/1/model.py", line 7 in compute\n'
    '  File "/srv/models/m/1/model.py", line 16 in execute\n'
)


def kills(world: World) -> list[Kill]:
    sent = [each.message for each in instructions(world, ToLauncher)]  # type: ignore[attr-defined]
    return [message for message in sent if isinstance(message, Kill)]


def deaths(world: World) -> dict[str, float]:
    return {
        sample.labels["cause"]: sample.value
        for sample in families(world)["conch_worker_deaths_total"].samples
        if sample.value
    }


def test_the_dispatcher_has_one_killed() -> None:
    world = loaded(snapshot())
    (worker,) = world.alive
    world.do(world.machine.kill(worker.id, TIMED_OUT, world.now))
    world.do(world.machine.kill(worker.id, TIMED_OUT, world.now))
    assert kills(world) == [Kill(worker.id, TIMED_OUT)]
    world.settle()
    assert world.entry().state == READY and len(world.usable) == 1
    assert world.machine.instances(world.now)[0].last_error == f"the worker of instance 'm_0_0' {TIMED_OUT}"
    assert deaths(world) == {"execution_timeout": 1}


def test_without_a_launcher_the_next_one_is_told() -> None:
    world = loaded(snapshot())
    (worker,) = world.alive
    world.launcher_dies()
    world.do(world.machine.kill(worker.id, TIMED_OUT, world.now))
    assert not kills(world)
    world.launcher_hello()
    assert kills(world) == [Kill(worker.id, TIMED_OUT)]
    world.settle()
    assert len(world.usable) == 1


def test_a_launcher_that_dies_after_killing_one() -> None:
    """Nobody has seen how it died, but why is known."""
    world = loaded(snapshot())
    (worker,) = world.alive
    world.do(world.machine.kill(worker.id, TIMED_OUT, world.now))
    world.launcher_dies()
    fault = world.machine.death_fault(Died(worker.id, 0, None, None))
    assert fault == Fault("WorkerDied", f"the worker of instance 'm_0_0' {TIMED_OUT}")
    world.launcher_hello()
    assert world.machine.instances(world.now)[0].last_error == fault.message
    assert deaths(world) == {"execution_timeout": 1}


def test_one_that_ends_by_itself_before_the_kill_reaches_it() -> None:
    """The launcher has seen how it ended, and that is what counts."""
    world = loaded(snapshot())
    (worker,) = world.alive
    world.launcher_dies()
    world.do(world.machine.kill(worker.id, TIMED_OUT, world.now))
    died = Died(worker.id, worker.pid, 3, None)
    assert world.machine.death_fault(died).message == "the worker of instance 'm_0_0' exited with code 3"
    worker.state = "dead"
    world.do(world.machine.died(died, 1, world.now))
    assert deaths(world) == {"exit": 1}


def test_where_it_hung_is_shown_and_not_told_to_clients() -> None:
    world = loaded(snapshot())
    (worker,) = world.alive
    died = Died(worker.id, worker.pid, None, 6, DUMP, TIMED_OUT)
    assert world.machine.death_fault(died).message == f"the worker of instance 'm_0_0' {TIMED_OUT}"
    worker.state = "dead"
    world.do(world.machine.died(died, 1, world.now))
    last_error = world.machine.instances(world.now)[0].last_error
    assert last_error == f"the worker of instance 'm_0_0' {TIMED_OUT}, in compute, model.py line 7"


@pytest.mark.parametrize(
    ("died", "cause"),
    [
        (Died("", 0, None, 11), "SIGSEGV"),
        (Died("", 0, None, 40), "signal 40"),
        (Died("", 0, 3, None), "exit"),
        (Died("", 0, None, None), "unknown"),
        (Died("", 0, None, 9, "", TIMED_OUT), "execution_timeout"),
        (
            Died("", 0, None, 9, "", "had 731 MiB of memory, more than its MEMORY_LIMIT_MIB of 512, and was killed"),
            "memory_limit",
        ),
    ],
)
def test_causes(died: Died, cause: str) -> None:
    world = loaded(snapshot())
    (worker,) = world.alive
    worker.state = "dead"
    died = Died(worker.id, worker.pid, died.exit_code, died.signal, "", died.reason)
    world.do(world.machine.died(died, 1, world.now))
    assert deaths(world) == {cause: 1}


def test_all_common_causes_are_there_from_the_load() -> None:
    found = families(loaded(snapshot()))
    labels = [sample.labels for sample in found["conch_worker_deaths_total"].samples]
    assert labels == [{"cause": cause, "model": "m", "version": "1"} for cause in COMMON_CAUSES]
    assert [sample.value for sample in found["conch_inference_retries_total"].samples] == [2]
    assert [sample.value for sample in found["conch_model_busy_seconds"].samples] == [3]


def test_who_was_told_to_end_did_not_die() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    assert available(world) == {("m", "1"): 1}
    world.unload()
    world.settle()
    assert not deaths(world) and not available(world)


def test_a_model_that_keeps_crashing_is_loaded_and_not_available() -> None:
    world = loaded(snapshot())
    for _ in range(CRASH_BUDGET):
        assert available(world) == {("m", "1"): 1}
        world.die(world.alive[0], signal=11)
        world.settle()
    assert available(world) == {("m", "1"): 0}
    (status,) = world.machine.instances(world.now)
    assert (status.state, status.restarts, status.retry_in_s) == ("backed-off", CRASH_BUDGET, 0.5)
    world.pass_time(1)
    assert available(world) == {("m", "1"): 1}
    assert deaths(world) == {"SIGSEGV": CRASH_BUDGET}


def test_a_death_after_serving_a_while_does_not_count() -> None:
    world = loaded(snapshot())
    for _ in range(3 * CRASH_BUDGET):
        world.pass_time(WELL_S)
        world.die(world.alive[0])
        world.settle()
        assert world.entry().state == READY and len(world.usable) == 1


def test_one_that_is_killed_while_it_is_restarted_is_started_again_at_once() -> None:
    """It did not fail to load: it was not given the time. But a second time may be no accident."""
    world = loaded(snapshot())
    for deaths, state in ((2, READY), (3, "UNAVAILABLE")):
        for _ in range(deaths):
            while not world.alive:
                world.happen()
            world.die(world.alive[0])
        while not world.alive and world.due:
            world.happen()
        assert world.entry().state == state
        world.settle()


def test_a_model_that_takes_long_to_load_is_not_spared_for_that() -> None:
    world = loaded(snapshot())
    for _ in range(CRASH_BUDGET):
        assert world.entry().state == READY
        world.die(world.alive[0])
        world.happen()
        world.now += 20
        world.settle()
    assert world.entry().state == "UNAVAILABLE"


def test_a_restart_that_hangs_is_killed_and_backed_off() -> None:
    world = loaded(snapshot(load_timeout_s="20"))
    world.die(world.alive[0])
    world.happen()
    world.due.clear()
    world.pass_time(20.2)
    why = "the worker of instance 'm_0_0' was not ready within its LOAD_TIMEOUT_S of 20 s and was killed"
    assert world.entry().reason == f"Unavailable: it keeps crashing (`conch logs m` shows its output): {why}"


def test_an_unloaded_model_that_hangs_is_killed() -> None:
    world = World([snapshot()], unload_timeout_s=30.0).start().settle()
    world.load()
    world.settle()
    call = world.unload()
    assert world.answer(call) is None
    assert not [each for each in instructions(world, ToControl) if isinstance(each.message, Drain)]  # type: ignore[attr-defined]
    world.due.clear()  # it holds a request, so it is not drained
    world.pass_time(29)
    assert world.entry().state == "UNLOADING" and not kills(world)
    world.pass_time(2)
    (kill,) = kills(world)
    assert kill.reason == "had not ended 30 s after its model's unload and was killed"
    assert world.entry().reason == "unloaded"


def test_an_unload_ends_what_hangs_since_a_reload_too() -> None:
    world = World([snapshot()], unload_timeout_s=30.0).start().settle()
    world.load()
    world.settle()
    world.models["m"] = snapshot(files="b")
    world.load()
    while not world.draining:
        world.happen()
    world.due.clear()  # the former worker holds a request, so it is not drained
    world.pass_time(1000)
    assert world.entry().state == READY and len(world.alive) == 2 and not kills(world)
    world.unload()
    world.due.clear()
    world.pass_time(31)
    assert len(kills(world)) == 2 and not world.alive
    assert world.entry().reason == "unloaded"


def test_a_model_in_a_debugger_may_take_its_time_to_end() -> None:
    world = World([snapshot()], unload_timeout_s=30.0, debugged={"m": 0}).start().settle()
    world.load()
    world.settle()
    world.unload()
    world.due.clear()
    world.pass_time(1000)
    assert world.entry().state == "UNLOADING" and not kills(world)

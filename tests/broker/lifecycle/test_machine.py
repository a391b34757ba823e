"""The life of models, event by event."""

import pytest

from broker.instructions import CallFinished, ModelDraining, ModelGone, ModelReady, TableChanged, ToControl, WorkerReady
from broker.lifecycle import Lifecycle
from broker.lifecycle.instances import CRASH_BUDGET
from broker.repository.scan import Found
from broker.repository.snapshot import Override
from conch.messages import Configured, Died, Fault
from tests.broker.lifecycle.world import World, snapshot

READY = "READY"


def loaded(*models: object, **options: object) -> World:
    """A world in mode none with these models loaded."""
    world = World(models, control_mode="none", **options).start().settle()  # type: ignore[arg-type]
    assert world.machine.startup_finished
    return world


def instructions(world: World, kind: type) -> list[object]:
    return [instruction for instruction in world.log if isinstance(instruction, kind)]


# -------------------------------------------------------------------------------------------------------------- loading


def test_instance_0_completes_then_all_load_with_the_completed_configuration() -> None:
    world = World([snapshot(count=3)], control_mode="none").start()
    world.happen()  # poll all
    assert [spawn.complete for spawn in world.all_spawns] == [True]
    assert world.entry().state == "LOADING"
    assert not world.machine.startup_finished
    world.settle()
    assert [(spawn.complete, spawn.instance, spawn.instance_name) for spawn in world.all_spawns] == [
        (True, 0, "m_0_0"),
        (False, 1, "m_0_1"),
        (False, 2, "m_0_2"),
    ]
    (configured,) = [each.message for each in instructions(world, ToControl)]  # type: ignore[attr-defined]
    assert isinstance(configured, Configured)
    assert '"max_batch_size":4' in configured.config
    assert world.all_spawns[1].config == configured.config == world.entry().config
    assert world.entry().state == READY and world.entry().healthy
    assert len(world.usable) == 3
    assert world.machine.startup_finished


def test_without_auto_complete_all_instances_start_at_once() -> None:
    world = World([snapshot(count=2, complete=False)], control_mode="none").start()
    world.happen()
    assert [spawn.complete for spawn in world.all_spawns] == [False, False]
    world.settle()
    assert world.entry().state == READY


def test_only_so_many_versions_load_at_a_time() -> None:
    world = World([snapshot(name) for name in "abcde"], control_mode="none", parallel_loads=2).start()
    world.happen()
    assert {spawn.model for spawn in world.all_spawns} == {"a", "b"}
    assert {world.entry(name).state for name in "abcde"} == {"LOADING"}
    world.settle()
    assert {world.entry(name).state for name in "abcde"} == {READY}


def test_nothing_is_spawned_before_the_launcher_is_there() -> None:
    world = World([snapshot()], control_mode="none").start(launcher=False).settle()
    assert world.entry().state == "LOADING" and not world.all_spawns
    world.launcher_hello()
    world.settle()
    assert world.entry().state == READY


def test_a_backend_s_failure_is_the_reason_and_the_answer() -> None:
    world = World([snapshot(count=2)]).start().settle()
    call = world.load()
    world.happen()
    world.fail_load(world.alive[0], Fault("ModelError", "ValueError: boom\n\nAt:\n  model.py(2): initialize\n"))
    world.settle()
    reason = "Internal: ValueError: boom\n\nAt:\n  model.py(2): initialize\n"
    assert world.entry().state == "UNAVAILABLE" and world.entry().reason == reason
    text = f"load failed for model 'm': version 1 is at UNAVAILABLE state: {reason};\n"
    assert world.answer(call) == Fault("InvalidArgument", text)
    assert not world.alive


def test_a_completed_configuration_that_is_invalid_fails_the_load() -> None:
    world = World([snapshot()], control_mode="none").start()
    world.happen()
    completed = '{"name":"m","input":[{"name":"x","data_type":"TYPE_FP32","dims":[0]}]}'
    world.do(world.machine.completed(world.alive[0].id, completed, world.now))
    world.settle()
    assert world.entry().reason == (
        "Invalid argument: model input 'x' dimension must be integer >= 1, or -1 to indicate a variable-size dimension "
        "for m"
    )


def test_a_death_while_loading_names_signal_and_last_words() -> None:
    world = World([snapshot()], control_mode="none").start()
    world.happen()
    world.die(world.alive[0], signal=11, tail="one\nlast words\n\n")
    world.settle()
    assert world.entry().state == "UNAVAILABLE"
    assert world.entry().reason == (
        "Internal: the worker of instance 'm_0_0' was killed by SIGSEGV; its last output: last words "
        "(while the model was being loaded)"
    )
    assert len(world.all_spawns) == 1


def test_a_death_by_a_fault_names_where() -> None:
    dump = (
        "warming up\nFatal Python error: Aborted\n\n"
        "Thread 0x00007fe6812fe6c0 (most recent call first):\n"
        '  File "/opt/conch/workers/control.py", line 86 in run\n\n'
        "Current thread 0x00007fe68abd9b80 (most recent call first):\n"
        '  File "/srv/models/m/1/model.py", line 16 in execute\n'
        '  File "/opt/conch/workers/backends/python.py", line 167 in _call\n\n'
        "Extension modules: msgspec._core, numpy.linalg._umath_linalg (total: 2)\n"
    )
    world = World([snapshot()], control_mode="none").start()
    world.happen()
    world.die(world.alive[0], signal=6, tail=dump)
    world.settle()
    assert world.entry().reason == (
        "Internal: the worker of instance 'm_0_0' was killed by SIGABRT in execute, model.py line 16 "
        "(while the model was being loaded)"
    )


def test_a_worker_that_does_not_get_ready_in_time_is_killed() -> None:
    world = World([snapshot()], control_mode="none", load_timeout_s=20.0).start()
    world.happen()
    world.due.clear()
    world.pass_time(21)
    assert not world.alive
    reason = "Internal: instance 'm_0_0' was not ready 20 s after its start (while the model was being loaded)"
    assert world.entry().reason == reason


def test_a_load_is_tried_again_as_often_as_told() -> None:
    world = World([snapshot()], control_mode="none", load_retries=1).start()
    world.happen()
    world.fail_load(world.alive[0], Fault("Internal", "first"))
    world.settle()
    assert world.entry().state == READY


def test_spawn_failed() -> None:
    world = World([snapshot()], control_mode="none").start()
    world.happen()
    process = world.alive[0]
    process.state = "dead"
    world.due.clear()
    world.do(world.machine.spawn_failed(process.id, Fault("Internal", "no more processes"), world.now))
    assert world.entry().reason.startswith("Internal: no more processes")


def test_one_version_that_fails_takes_the_others_with_it() -> None:
    world = World([snapshot(versions=(1, 2))]).start().settle()
    call = world.load()
    world.happen()
    for process in world.workers_of("m", 1):
        world.do(world.machine.completed(process.id, process.config.replace("x", "x"), world.now))
    (bad,) = world.workers_of("m", 2)
    world.fail_load(bad, Fault("Internal", "two"))
    world.settle()
    assert world.states() == {("m", 1): "UNAVAILABLE", ("m", 2): "UNAVAILABLE"}
    assert world.entry("m", 1).reason == "unloaded"
    assert world.entry("m", 2).reason == "Internal: two"
    answer = world.answer(call)
    assert answer is not None
    assert answer.message == "load failed for model 'm': version 2 is at UNAVAILABLE state: Internal: two;\n"
    assert not world.alive


def test_a_model_that_cannot_be_loaded_whatever_its_backend_says() -> None:
    fault = Fault("Unsupported", "model 'm' uses ensembles, which Conch does not have yet")
    world = World([snapshot(fault=fault)]).start().settle()
    call = world.load()
    world.settle()
    assert world.entry().reason == f"Unsupported: {fault.message}"
    assert world.answer(call) == Fault(
        "InvalidArgument",
        f"load failed for model 'm': version 1 is at UNAVAILABLE state: Unsupported: {fault.message};\n",
    )
    assert not world.all_spawns


def test_no_version_at_all() -> None:
    fault = Fault("InvalidArgument", "at least one version must be available under the version policy of model 'm'")
    world = World([snapshot(versions=(), fault=fault)]).start().settle()
    call = world.load()
    world.settle()
    assert world.answer(call) == Fault("InvalidArgument", f"load failed for model 'm': {fault.message}\n")
    assert world.entry("m", 0).state == "UNAVAILABLE"
    assert world.entry("m", 0).reason == f"Invalid argument: {fault.message}"


# ---------------------------------------------------------------------------------------------------------------- calls


def test_unknown_model() -> None:
    world = World([snapshot()]).start().settle()
    load, unload = world.load("nope"), world.unload("nope")
    world.settle()
    assert world.answer(load) == Fault("PollFailed", "failed to load 'nope', failed to poll from model repository")
    assert world.answer(unload) is None
    assert ("nope", 0) not in world.states()


def test_names_that_cannot_be_models_are_refused() -> None:
    world = World([snapshot()]).start().settle()
    for name in ("../x", "", "..", "a/b"):
        answer = world.answer(world.load(name))
        assert answer is not None and answer.kind == "InvalidArgument", name


def test_a_model_that_cannot_be_read_shows_its_reason() -> None:
    world = World().start()
    world.models["m"] = Fault("PollFailed", "failed to read text proto from config.pbtxt: 1:1 : what?")
    world.settle()
    assert world.entry("m", 0).state == "UNKNOWN"
    call = world.load()
    world.settle()
    assert world.answer(call) == Fault("PollFailed", "failed to load 'm', failed to poll from model repository")
    assert world.entry("m", 0).state == "UNAVAILABLE"
    assert world.entry("m", 0).reason == "Internal: failed to read text proto from config.pbtxt: 1:1 : what?"


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_calls_need_explicit_control(mode: str) -> None:
    world = World([snapshot()], control_mode=mode).start().settle()
    refused = Fault("Unavailable", "explicit model load / unload is not allowed if polling is enabled")
    assert world.answer(world.load()) == refused
    assert world.answer(world.unload()) == refused


def test_explicit_loads_only_what_it_is_told() -> None:
    world = World([snapshot("a"), snapshot("b")], load_at_start=["b"]).start().settle()
    assert world.states() == {("a", 0): "UNKNOWN", ("b", 1): READY}
    assert world.machine.startup_finished


def test_a_model_to_load_at_start_that_does_not_exist_is_in_the_table() -> None:
    world = World([snapshot("a")], load_at_start=["a", "typo"]).start().settle()
    assert world.machine.startup_finished
    assert world.entry("typo", 0).state == "UNAVAILABLE"
    assert world.entry("typo", 0).reason == "Internal: model not found in any model repository."


def test_explicit_star_loads_everything() -> None:
    world = World([snapshot("a"), snapshot("b")], load_at_start=["*"]).start().settle()
    assert world.states() == {("a", 1): READY, ("b", 1): READY}


def test_two_loads_at_once_both_succeed_with_one_worker() -> None:
    world = World([snapshot()]).start().settle()
    first, second = world.load(), world.load()
    world.settle()
    assert world.answer(first) is None and world.answer(second) is None
    assert len(world.all_spawns) == 1


def test_load_of_what_has_not_changed_does_nothing() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    again = world.load()
    world.settle()
    assert world.answer(again) is None
    assert len(world.all_spawns) == 1


def test_the_table_precedes_the_answer() -> None:
    world = World([snapshot()]).start().settle()
    world.log.clear()
    world.load()
    world.settle()
    kinds = [type(instruction) for instruction in world.log]
    assert kinds.index(ModelReady) < kinds.index(WorkerReady) < len(kinds) - 1 - kinds[::-1].index(TableChanged)
    assert kinds[::-1].index(TableChanged) > kinds[::-1].index(CallFinished)


# ------------------------------------------------------------------------------------------------------------ unloading


def test_unload_answers_at_once_and_drains() -> None:
    world = World([snapshot(count=2)]).start().settle()
    world.load()
    world.settle()
    call = world.unload()
    assert world.answer(call) is None
    assert world.entry().state == "UNLOADING" and not world.entry().healthy
    assert [process.state for process in world.alive] == ["draining", "draining"]
    (draining,) = instructions(world, ModelDraining)
    assert draining.fault.kind == "NotReady"  # type: ignore[attr-defined]
    world.settle()
    assert (world.entry().state, world.entry().reason) == ("UNAVAILABLE", "unloaded")
    assert not world.alive
    assert isinstance(instructions(world, ModelGone)[-1], ModelGone)


def test_load_and_unload_of_one_model_run_in_the_order_of_arrival() -> None:
    world = World([snapshot()]).start().settle()
    calls = [world.load(), world.unload(), world.load(), world.unload(), world.load()]
    world.settle()
    assert [world.answer(call) for call in calls] == [None] * 5
    assert world.entry().state == READY
    assert len(world.alive) == 1


def test_load_while_the_former_copy_still_drains() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    (old,) = world.alive
    world.unload()
    world.due.clear()  # it takes its time
    call = world.load()
    world.settle()
    assert world.answer(call) is None and world.entry().state == READY
    assert old.state == "draining" and len(world.usable) == 1
    world.die(old, exit_code=0, signal=None)
    world.settle()
    assert world.entry().state == READY


def test_unload_while_an_instance_restarts_kills_that_one() -> None:
    world = World([snapshot(count=2)]).start().settle()
    world.load()
    world.settle()
    world.die(world.alive[0])
    world.happen(len(world.due) - 1)
    assert len(world.alive) == 2
    world.unload()
    world.settle()
    assert not world.alive and world.entry().reason == "unloaded"


# ------------------------------------------------------------------------------------------------------------ reloading


def test_reload_swaps_at_once_and_drains_the_old() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    (old,) = world.alive
    world.models["m"] = snapshot(files="b")
    call = world.load()
    world.happen()
    assert world.entry().state == READY and old.id in world.usable
    world.settle()
    assert world.answer(call) is None
    assert old.state == "dead" and len(world.usable) == 1 and old.id not in world.usable
    assert world.entry().state == READY
    ready = instructions(world, ModelReady)[-1]
    assert ready.fresh_statistics  # type: ignore[attr-defined]


def test_reload_that_fails_keeps_the_old() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    (old,) = world.alive
    world.models["m"] = snapshot(files="b")
    call = world.load()
    world.happen()
    (new,) = [process for process in world.alive if process is not old]
    world.fail_load(new, Fault("Internal", "broken"))
    world.settle()
    answer = world.answer(call)
    assert answer is not None
    assert answer.message == "load failed for model 'm': version 1 is at UNAVAILABLE state: Internal: broken;\n"
    assert (world.entry().state, world.entry().reason) == (READY, "")
    assert world.alive == [old] and set(world.usable) == {old.id}
    # and the next load tries again, although nothing changed since
    again = world.load()
    world.settle()
    assert world.answer(again) is None and old.state == "dead"


def test_reload_that_cannot_be_read_keeps_the_old() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    world.models["m"] = Fault("PollFailed", "what?")
    call = world.load()
    world.settle()
    assert world.answer(call) == Fault("PollFailed", "failed to load 'm', failed to poll from model repository")
    assert (world.entry().state, world.entry().reason) == (READY, "")


def test_a_version_that_is_no_longer_chosen_is_unloaded() -> None:
    world = World([snapshot(versions=(1, 2))]).start().settle()
    world.load()
    world.settle()
    world.models["m"] = snapshot(versions=(2, 3))
    world.load()
    world.settle()
    assert world.states() == {("m", 1): "UNAVAILABLE", ("m", 2): READY, ("m", 3): READY}
    assert world.entry("m", 1).reason == "unloaded"
    assert [spawn.version for spawn in world.all_spawns] == [1, 2, 3]


def test_more_and_fewer_instances_leave_the_others_running() -> None:
    world = World([snapshot(count=2)]).start().settle()
    world.load()
    world.settle()
    first = world.alive
    world.models["m"] = snapshot(count=4)
    world.load()
    world.settle()
    assert set(first) < set(world.alive) and len(world.usable) == 4
    assert sorted(process.spawn.instance for process in world.alive) == [0, 1, 2, 3]
    assert not instructions(world, ModelReady)[-1].fresh_statistics  # type: ignore[attr-defined]
    assert '"count":4' in world.entry().config and '"max_batch_size":4' in world.entry().config
    world.models["m"] = snapshot(count=1)
    world.load()
    world.settle()
    assert world.alive == first[:1] and set(world.usable) == {first[0].id}


def test_an_added_instance_that_fails_leaves_the_others_running() -> None:
    world = World([snapshot(count=1)]).start().settle()
    world.load()
    world.settle()
    (old,) = world.alive
    world.models["m"] = snapshot(count=2)
    call = world.load()
    world.happen()
    (new,) = [process for process in world.alive if process is not old]
    world.fail_load(new, Fault("Internal", "no memory"))
    world.settle()
    assert world.answer(call) is not None
    assert world.alive == [old] and world.entry().state == READY
    world.die(old)
    world.settle()
    assert len(world.alive) == 1 and world.entry().healthy


def test_override_and_back() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    world.load(override=Override(config="{}", files={"1/model.py": b""}))
    world.settle()
    assert world.alive[0].spawn.model_dir.startswith("/models")  # the simulated repository does not move it
    assert not world.dropped
    world.load()
    world.settle()
    assert len(world.all_spawns) == 3
    assert len(world.dropped) == 1 and world.dropped[0].startswith("/overrides/")


# -------------------------------------------------------------------------------------------------------------- crashes


def test_a_dead_worker_is_replaced_at_once() -> None:
    world = loaded(snapshot(count=2))
    victim = world.alive[0]
    world.die(victim)
    world.happen()
    assert world.entry().state == READY and world.entry().healthy
    world.settle()
    assert len(world.usable) == 2
    replacement = world.all_spawns[-1]
    assert (replacement.instance, replacement.instance_name) == (victim.spawn.instance, victim.spawn.instance_name)
    assert not replacement.complete and replacement.config == world.entry().config


def test_repeated_deaths_back_off_and_make_it_unavailable_then_it_comes_back() -> None:
    world = loaded(snapshot())
    for death in range(CRASH_BUDGET):
        assert world.entry().state == READY
        world.die(world.alive[0], signal=11, tail=f"words {death}")
        world.settle()
    assert world.entry().state == "UNAVAILABLE" and not world.alive
    assert world.entry().reason == (
        "Unavailable: it keeps crashing: the worker of instance 'm_0_0' was killed by SIGSEGV; its last output: "
        f"words {CRASH_BUDGET - 1}"
    )
    assert instructions(world, ModelGone)
    world.pass_time(0.4)
    assert not world.alive
    world.pass_time(0.2)
    assert world.entry().state == READY and world.entry().reason == "" and len(world.usable) == 1
    assert not instructions(world, ModelReady)[-1].fresh_statistics  # type: ignore[attr-defined]


def test_the_pauses_double_up_to_a_minute() -> None:
    world = loaded(snapshot())
    pauses = []
    for _ in range(CRASH_BUDGET + 11):
        if not world.alive:
            wakeup = min(each.retry_at for each in world.machine._backed_off())
            pauses.append(wakeup - world.now)
            world.pass_time(pauses[-1])
        world.die(world.alive[0])
        world.settle()
    assert pauses[:9] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_a_worker_that_was_well_for_long_is_restarted_at_once_again() -> None:
    world = loaded(snapshot())
    for _ in range(20):
        world.die(world.alive[0])
        world.settle()
        assert world.entry().state == READY
        world.pass_time(16)


def test_deaths_that_a_request_is_to_blame_for_do_not_count() -> None:
    world = loaded(snapshot())
    for _ in range(30):
        (process,) = world.alive
        process.state = "dead"
        world.do(world.machine.died(process.id, None, 9, "", False, world.now))
        world.settle()
    assert world.entry().state == READY and len(world.alive) == 1


def test_one_instance_that_crashes_does_not_take_the_version_down() -> None:
    world = loaded(snapshot(count=2))
    for _ in range(CRASH_BUDGET):
        (victim,) = [process for process in world.alive if process.spawn.instance == 1]
        world.die(victim)
        world.settle()
    assert world.entry().state == READY and world.entry().healthy
    assert len(world.alive) == 1
    states = {status.instance: status.state for status in world.machine.instances()}
    assert states == {"m_0_0": "ready", "m_0_1": "backed-off"}


def test_a_restart_that_fails_backs_off_with_the_backend_s_reason() -> None:
    world = loaded(snapshot())
    world.die(world.alive[0])
    world.happen()
    (process,) = world.alive
    world.fail_load(process, Fault("ModelError", "the file is gone"))
    world.settle()
    assert world.entry().reason == "Unavailable: it keeps crashing: the file is gone"
    assert world.machine.instances()[0].last_error == "the file is gone"
    world.pass_time(1)
    assert world.entry().state == READY


def test_a_load_call_heals_what_keeps_crashing() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    for _ in range(CRASH_BUDGET):
        world.die(world.alive[0])
        world.settle()
    assert world.entry().state == "UNAVAILABLE"
    call = world.load()
    world.settle()
    assert world.answer(call) is None
    assert world.entry().state == READY and len(world.alive) == 1
    world.pass_time(100)
    assert len(world.alive) == 1


def test_a_loaded_instance_that_dies_before_the_others_are_ready_loads_again() -> None:
    world = World([snapshot(count=2, complete=False)], control_mode="none").start()
    world.happen()
    first, second = world.alive
    first.state = "ready"
    world.do(world.machine.ready(first.id, world.now))
    world.die(first)
    world.settle()
    assert world.entry().state == READY and len(world.usable) == 2 and second.id in world.usable


def test_a_reload_cures_a_crashing_model_without_losing_what_is_queued() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    world.models["m"] = snapshot(files="b")
    call = world.load()
    world.happen()
    old = next(process for process in world.alive if process.state == "ready")
    steps = [event for event in world.due if event[0].startswith(("step", "spawned"))]
    for _ in range(CRASH_BUDGET):
        world.die(old)
        world.due = [event for event in world.due if event[0].startswith("died")]
        world.settle()
        fresh = [process for process in world.alive if not process.spawn.complete]
        if fresh:
            old = fresh[0]
            old.state = "ready"
            world.do(world.machine.ready(old.id, world.now))
    assert world.entry().state == "UNAVAILABLE"
    assert not instructions(world, ModelGone)
    world.due = steps
    world.settle()
    assert world.answer(call) is None and world.entry().state == READY


# --------------------------------------------------------------------------------------------------------- the launcher


def test_a_spawn_that_died_with_the_launcher_is_repeated() -> None:
    world = World([snapshot()], control_mode="none").start()
    world.happen()
    (lost,) = world.alive
    world.launcher_dies()
    lost.state = "dead"
    world.due.clear()
    world.launcher_hello()
    world.settle()
    assert world.entry().state == READY and len(world.all_spawns) == 2


def test_deaths_while_no_launcher_was_there() -> None:
    world = loaded(snapshot(count=2))
    world.launcher_dies()
    world.die(world.alive[0])
    world.settle()
    assert world.entry().state == READY and len(world.alive) == 1
    world.launcher_hello()
    world.settle()
    assert len(world.usable) == 2


def test_restarts_wait_for_the_launcher() -> None:
    world = loaded(snapshot())
    world.launcher_dies()
    victim = world.alive[0]
    victim.state = "dead"
    world.do(world.machine.died(victim.id, None, 9, "", True, world.now))
    assert not world.alive
    world.launcher_hello()
    world.settle()
    assert len(world.alive) == 1


# ------------------------------------------------------------------------------------------------- the broker's restart


def test_a_restarted_broker_adopts_every_worker() -> None:
    world = loaded(snapshot("a", count=2), snapshot("b", versions=(1, 2)))
    workers = list(world.alive)
    config = world.entry("a").config
    world.restart_broker()
    world.settle()
    assert world.alive == workers and len(world.all_spawns) == 4
    assert set(world.states().values()) == {READY}
    assert set(world.usable) == {process.id for process in workers}
    assert world.entry("a").config == config
    assert world.machine.startup_finished


@pytest.mark.parametrize("order", ["hellos first", "launcher first", "scan last"])
def test_adoption_in_every_order(order: str) -> None:
    world = loaded(snapshot(count=2))
    world.restart_broker()
    rank = {
        "hellos first": ("hello", "launcher", "poll"),
        "launcher first": ("launcher", "poll", "hello"),
        "scan last": ("launcher", "hello", "poll"),
    }[order]
    world.due.sort(key=lambda event: rank.index(event[0].split()[0]))
    world.settle()
    assert len(world.all_spawns) == 2 and len(world.usable) == 2 and world.entry().state == READY


def test_workers_of_something_else_are_drained() -> None:
    world = loaded(snapshot())
    (old,) = world.alive
    world.models["m"] = snapshot(files="b")
    world.restart_broker()
    world.settle()
    assert old.state == "dead"
    assert len(world.alive) == 1 and world.entry().state == READY


def test_workers_of_models_that_are_gone_are_drained() -> None:
    world = loaded(snapshot("a"), snapshot("b"))
    del world.models["b"]
    world.restart_broker()
    world.settle()
    assert [process.spawn.model for process in world.alive] == ["a"]


def test_a_worker_that_never_speaks_is_replaced() -> None:
    world = loaded(snapshot())
    (silent,) = world.alive
    world.restart_broker()
    world.due = [event for event in world.due if not event[0].startswith("hello")]
    world.settle()
    assert world.entry().state == "LOADING"
    world.pass_time(11)
    assert silent.state == "dead" and world.entry().state == READY and len(world.alive) == 1


def test_an_adopted_worker_that_dies_at_once_is_replaced() -> None:
    world = loaded(snapshot())
    world.restart_broker()
    world.die(world.alive[0])
    world.settle()
    assert world.entry().state == READY and len(world.alive) == 1


def test_workers_that_were_still_loading_start_again() -> None:
    world = World([snapshot(count=2)], control_mode="none").start()
    world.happen()
    world.restart_broker()
    world.settle()
    assert world.entry().state == READY and len(world.alive) == 2


def test_explicit_loads_survive_with_their_overrides() -> None:
    world = World([snapshot("a"), snapshot("b"), snapshot("c")], load_at_start=["a"]).start().settle()
    world.load("b", Override(config='{"max_batch_size":1}'))
    world.load("c")
    world.settle()
    world.unload("a")
    world.unload("c")
    world.settle()
    workers = list(world.alive)
    world.restart_broker()
    world.settle()
    assert world.states() == {("a", 0): "UNKNOWN", ("b", 1): READY, ("c", 0): "UNKNOWN"}
    assert world.alive == workers and len(world.all_spawns) == 3


def test_a_clean_exit_leaves_no_loads_behind() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    world.do(world.machine.drain_all(world.now))
    world.settle()
    world.restart_broker()
    world.settle()
    assert world.states() == {("m", 0): "UNKNOWN"}


# ----------------------------------------------------------------------------------------------------------------- exit


def test_exit_drains_everything() -> None:
    world = loaded(snapshot("a", count=2), snapshot("b"))
    world.do(world.machine.drain_all(world.now))
    assert world.alive and not world.accepting
    world.settle()
    assert world.machine.drained and not world.alive
    assert set(world.states().values()) == {"UNAVAILABLE"}


def test_exit_while_loading_answers_and_kills() -> None:
    world = World([snapshot("a"), snapshot("b")]).start().settle()
    calls = [world.load("a"), world.load("b"), world.unload("a")]
    world.happen()
    world.do(world.machine.drain_all(world.now))
    assert [world.answer(call) for call in calls] == [Fault("Unavailable", "the server is exiting")] * 3
    world.settle()
    assert world.machine.drained and not world.alive
    assert world.answer(world.load("a")) == Fault("Unavailable", "the server is exiting")


def test_exit_that_takes_too_long() -> None:
    world = loaded(snapshot(count=2))
    world.do(world.machine.drain_all(world.now))
    world.due.clear()
    world.do(world.machine.kill_all(world.now))
    world.settle()
    assert world.machine.drained and not world.alive


# -------------------------------------------------------------------------------------------------------------- polling


def test_poll_mode_follows_the_folders() -> None:
    world = World([snapshot("a"), snapshot("b")], control_mode="poll", poll_interval_s=15.0).start().settle()
    assert world.states() == {("a", 1): READY, ("b", 1): READY}
    world.pass_time(60)
    assert len(world.all_spawns) == 2
    world.models = {"a": snapshot("a", files="new"), "c": snapshot("c")}
    world.pass_time(16)
    assert world.states() == {("a", 1): READY, ("b", 1): "UNAVAILABLE", ("c", 1): READY}
    assert [spawn.model for spawn in world.all_spawns] == ["a", "b", "a", "c"]


def test_a_repository_that_cannot_be_read_for_a_moment_unloads_nothing() -> None:
    world = World([snapshot("a")], control_mode="poll").start().settle()
    world.do(world.machine.polled_all(Found((), frozenset(), complete=False), {}, world.now))
    world.settle()
    assert world.states() == {("a", 1): READY}


def test_new_folders_show_up_without_polling() -> None:
    world = World([snapshot("a")]).start().settle()
    world.models["b"] = snapshot("b")
    world.pass_time(6)
    assert world.states() == {("a", 0): "UNKNOWN", ("b", 0): "UNKNOWN"}
    del world.models["a"]
    world.pass_time(6)
    assert world.states() == {("b", 0): "UNKNOWN"}


# --------------------------------------------------------------------------------------------------------------- others


def test_death_fault_names_the_signal_and_nothing_private() -> None:
    world = loaded(snapshot())
    (process,) = world.alive
    fault = world.machine.death_fault(Died(process.id, process.pid, None, 9, "secret /path"))
    assert fault == Fault("WorkerDied", "the worker of instance 'm_0_0' was killed by SIGKILL")


def test_workers_nobody_asked_for_are_killed() -> None:
    world = loaded(snapshot())
    out = world.machine.spawned("stranger", 5, world.now)
    assert [str(each.message) for each in out] == ["Kill(worker='stranger')"]  # type: ignore[union-attr]


def test_instances() -> None:
    world = loaded(snapshot(count=2))
    world.settle()
    first = world.machine.instances()[0]
    assert (first.model, first.version, first.instance, first.state, first.restarts) == ("m", 1, "m_0_0", "ready", 0)
    assert first.pid == world.processes[first.worker].pid


def test_an_empty_repository_is_started_at_once() -> None:
    machine = Lifecycle(new_id=lambda: "x")
    machine.start(0.0)
    assert not machine.startup_finished

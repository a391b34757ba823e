"""A model's way from nothing to READY, or to the reason why not, event by event; and what is told of its instances."""

from broker.instructions import ToControl
from broker.lifecycle import Lifecycle
from conch.messages import Configured, Fault
from tests.broker.lifecycle.support import READY, instructions, loaded
from tests.broker.lifecycle.world import World, snapshot


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


def test_a_configuration_that_is_completed_in_a_process_of_its_own() -> None:
    world = World([snapshot(count=2)], control_mode="none", completes_apart=True).start()
    world.happen()
    (completing,) = world.alive
    world.settle()
    assert completing.state == "dead"
    assert [(spawn.complete, spawn.instance) for spawn in world.all_spawns] == [(True, 0), (False, 0), (False, 1)]
    assert '"max_batch_size":4' in world.all_spawns[1].config
    assert world.entry().state == READY and len(world.usable) == 2
    assert [status.restarts for status in world.machine.instances(world.now)] == [0, 0]


def test_nothing_is_loaded_before_the_process_that_has_completed_is_dead() -> None:
    world = World([snapshot(count=2)], control_mode="none", completes_apart=True).start()
    world.happen()
    (completing,) = world.alive
    while completing.state == "completing":
        world.happen()
    assert completing.state == "draining" and len(world.all_spawns) == 1
    assert {status.state for status in world.machine.instances(world.now)} == {"starting"}
    world.due.clear()  # it does not end
    world.pass_time(6)
    world.settle()
    assert completing.state == "dead" and world.entry().state == READY


def test_a_broker_restarts_while_the_process_that_has_completed_ends() -> None:
    world = World([snapshot()], control_mode="none", completes_apart=True).start()
    world.happen()
    (completing,) = world.alive
    while completing.state == "completing":
        world.happen()
    world.restart_broker()
    world.settle()
    assert world.entry().state == READY and completing.state == "dead"
    assert [spawn.complete for spawn in world.all_spawns] == [True, True, False]


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
        "(while the model was being loaded; `conch logs m` shows its output)"
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
        "(while the model was being loaded; `conch logs m` shows its output)"
    )


def test_a_worker_that_does_not_get_ready_in_time_is_killed() -> None:
    world = World([snapshot(load_timeout_s="20")], control_mode="none").start()
    world.happen()
    world.due.clear()
    world.pass_time(21)
    assert not world.alive
    why = "the worker of instance 'm_0_0' was not ready within its LOAD_TIMEOUT_S of 20 s and was killed"
    assert (
        world.entry().reason == f"Internal: {why} (while the model was being loaded; `conch logs m` shows its output)"
    )


def test_without_a_parameter_a_load_may_take_five_minutes() -> None:
    world = World([snapshot()], control_mode="none").start()
    world.happen()
    world.due.clear()
    world.pass_time(299)
    assert world.entry().state == "LOADING" and world.alive
    world.pass_time(2)
    assert "was not ready within its LOAD_TIMEOUT_S of 300 s" in world.entry().reason


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


def test_instances() -> None:
    world = loaded(snapshot(count=2))
    world.settle()
    first = world.machine.instances(world.now)[0]
    assert (first.model, first.version, first.instance, first.state, first.restarts) == ("m", 1, "m_0_0", "ready", 0)
    assert first.pid == world.processes[first.worker].pid


def test_an_empty_repository_is_started_at_once() -> None:
    machine = Lifecycle(new_id=lambda: "x")
    machine.start(0.0)
    assert not machine.startup_finished

"""Calls, loads at the start, and polling: what they load and unload, and what calls are answered."""

import pytest

from broker.instructions import CallFinished, ModelReady, TableChanged, WorkerReady
from broker.repository.scan import Found
from conch.messages import Fault
from tests.broker.lifecycle.support import READY
from tests.broker.lifecycle.world import World, snapshot

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

"""Shares of models in a requester: pure, and in a whole one."""

import asyncio
from pathlib import Path

import pytest

from conch.errors import Overloaded
from conch.model_config import decode_config
from conch.requester.models import ReadyModel
from conch.requester.shares import Shares
from tests.frontends.fakes import eventually, on_uvloop
from tests.frontends.samples import entry, simple_call, table
from tests.frontends.setup import setup


def model(version: int = 1) -> ReadyModel:
    text = '{"name": "slow"}'
    return ReadyModel("slow", version, decode_config(text), text, {})


class TestShares:
    def test_requests(self) -> None:
        shares = Shares(2, 1000)
        share = shares.of(model())
        for _ in range(2):
            share.check(10)
            share.add(10)
        with pytest.raises(Overloaded, match=r"2 requests wait for version 1 of model 'slow', .*; try again later"):
            share.check(10)
        shares.of(model(2)).check(10)
        share.remove(10)
        share.check(10)

    def test_bytes(self) -> None:
        share = Shares(100, 1000).of(model())
        share.check(1000)
        share.add(1000)
        with pytest.raises(Overloaded, match=r"1000 of at most 1000 bytes, and 64 more are too many; try again later"):
            share.check(64)
        share.remove(1000)
        share.check(64)

    def test_a_lone_request_may_be_of_any_size(self) -> None:
        """The arena and the protocols decide how large one may be."""
        Shares(100, 1000).of(model()).check(5000)

    def test_a_model_that_is_loaded_anew_goes_on_with_its_share(self) -> None:
        shares = Shares(1, 1000)
        old, new = model(), model()
        shares.of(old).add(10)
        assert shares.of(new) is old.share is new.share


class TestRequester:
    @on_uvloop
    async def test_inside_a_worker_a_model_may_take_up_all(self, run_dir: Path) -> None:
        async with setup(run_dir, max_inflight=2, worker="0123456789abcdef") as s:
            for future in [s.submit() for _ in range(2)]:
                future.cancel()

    @on_uvloop
    async def test_a_backlog_leaves_room_for_others(self, run_dir: Path) -> None:
        async with setup(run_dir, max_inflight=4) as s:
            s.broker.send(table(entry(), entry(name="other"), revision=2))
            await eventually(lambda: s.requester.models.ready_versions("other") == (1,))
            other = s.requester.models.lookup("other")
            futures = [s.submit() for _ in range(2)]
            with pytest.raises(Overloaded, match="2 requests wait for version 1 of model 'simple'"):
                s.submit()
            futures += [s.requester.submit(other, simple_call()) for _ in range(2)]
            with pytest.raises(Overloaded):
                s.submit()
            worker = s.worker()
            await worker.answer(*[await s.broker.request() for _ in futures])
            await asyncio.gather(*futures)
            s.submit().cancel()

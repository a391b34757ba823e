"""Ids of requests: a worker that knows many cannot tell others from them."""

from itertools import islice, pairwise

from conch.requester.request_ids import unguessable_ids

_COUNT = 5_000


def test_ids_are_unique_and_follow_no_rule() -> None:
    ids = list(islice(unguessable_ids(), _COUNT))
    assert len(set(ids)) == _COUNT
    assert all(0 < id < 2**64 for id in ids)
    assert len({second - first for first, second in pairwise(ids)}) == _COUNT - 1
    assert max(ids) > 2**63 > min(ids)


def test_requesters_share_no_ids() -> None:
    assert not set(islice(unguessable_ids(), _COUNT)) & set(islice(unguessable_ids(), _COUNT))

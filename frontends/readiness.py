"""Readiness that models themselves have a say in."""

import asyncio
from collections.abc import Sequence

from conch.errors import ConchError
from conch.messages import AskReady
from frontends.requesting import RequesterLike


async def all_ready(requester: RequesterLike, checks: Sequence[AskReady]) -> bool:
    """Asks all at once. A question that cannot be put, because the broker is away, counts as a no."""
    return all(await asyncio.gather(*(_is_ready(requester, check) for check in checks)))


async def _is_ready(requester: RequesterLike, check: AskReady) -> bool:
    try:
        return bool(await requester.call(check))
    except ConchError:
        return False

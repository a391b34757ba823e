"""What the clients saw, beside what was killed."""

import statistics
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from tests.chaos.clients import Exchange
from tests.chaos.killing import Kill

#: so long after its death a process's port may still take connections, which break when the kernel comes to the port
_DYING_S = 0.2


class Judged(NamedTuple):
    """``excused``: of a connection that was open on a frontend when that was killed. ``failures``: everything else that
    a client should not have seen."""

    right: int
    ended: int
    excused: list[Exchange]
    failures: list[Exchange]


def judge(exchanges: Iterable[Sequence[Exchange]], kills: Sequence[Kill]) -> Judged:
    """``exchanges`` of each client, in their order."""
    right = ended = 0
    excused: list[Exchange] = []
    failures: list[Exchange] = []
    for of_client in exchanges:
        connected_s = 0.0  # the connection was in use then
        for exchange in of_client:
            if exchange.verdict == "right":
                right += 1
            elif exchange.verdict == "ended":
                ended += 1
            elif exchange.verdict == "broken" and any(
                kill.role == exchange.protocol and connected_s - _DYING_S < kill.killed_s < exchange.ended_s
                for kill in kills
            ):
                excused.append(exchange)
            else:
                failures.append(exchange)
            connected_s = exchange.ended_s if exchange.verdict == "broken" else exchange.sent_s
    return Judged(right, ended, excused, failures)


def recovery_s(kill: Kill, answered: Sequence[Exchange]) -> float | None:
    """From the kill to the first right answer to a request sent afterwards that needs what was killed, None if there
    was none. ``answered``: by the time of the answer."""
    first = bisect_left(answered, kill.killed_s, key=lambda exchange: exchange.ended_s)
    for exchange in islice(answered, first, None):
        if exchange.sent_s > kill.killed_s and _needs(exchange, kill):
            return exchange.ended_s - kill.killed_s
    return None


def _needs(exchange: Exchange, kill: Kill) -> bool:
    if kill.model:
        return kill.model in exchange.models
    return exchange.protocol == kill.role or kill.role not in ("http", "grpc")


def text(
    judged: Judged,
    exchanges: Iterable[Sequence[Exchange]],
    kills: Sequence[Kill],
    retries: int,
    leaks: Sequence[str],
) -> str:
    answered = sorted(
        (each for of_client in exchanges for each in of_client if each.verdict == "right"),
        key=lambda each: each.ended_s,
    )
    by_role = Counter(kill.role.partition(" ")[0] for kill in kills)
    lines = [
        f"requests                {judged.right + judged.ended + len(judged.excused) + len(judged.failures):,}",
        f"failures                {len(judged.failures):,}",
        f"streams ended early     {judged.ended:,} with a clear error",
        f"connections lost        {len(judged.excused):,} that were open on a killed frontend",
        f"requests run again      {retries:,}",
        f"longest wait            {max((each.ended_s - each.sent_s for each in answered), default=0):.2f} s",
        f"kills                   {len(kills):,}: " + ", ".join(f"{count} {name}" for name, count in by_role.items()),
        "",
        "| killed | times | recovery: median | 99 % | longest |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in sorted(by_role):
        of_role = [kill for kill in kills if kill.role.partition(" ")[0] == name]
        times = [found for kill in of_role if (found := recovery_s(kill, answered)) is not None]
        if times:
            times.sort()
            slow = times[int(len(times) * 0.99)]
            lines.append(
                f"| {name} | {len(of_role)} | {_ms(statistics.median(times))} | {_ms(slow)} | {_ms(times[-1])} |"
            )
    texts = Counter(f"{each.protocol} {each.models[0]}: {each.verdict}: {each.text}" for each in judged.failures)
    lines += ["", *(f"FAILED {count} times: {failure}" for failure, count in texts.most_common(20))]
    lines += [f"LEFT BEHIND: {leak}" for leak in leaks]
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"

"""``grpc.health.v1.Health``, written by hand: two messages with one field each need no generated code."""

from collections.abc import Callable

from conch.categories import Category
from frontends.grpc.calls import Rpc
from frontends.grpc.exchange import Call, Pending, Reply

CHECK = "/grpc.health.v1.Health/Check"

#: HealthCheckResponse with its field ``status``, number 1
_SERVING = b"\x08\x01"
_NOT_SERVING = b"\x08\x02"


def health_rpcs(ready: Callable[[Callable[[bool], bytes]], bytes | Pending]) -> dict[str, Rpc]:
    """``Check`` says whether the server is ready, whatever service the client asks for, as Triton does. There is no
    ``Watch``. ``ready`` takes what makes the answer."""

    def check(call: Call) -> Reply | Pending:
        return ready(lambda serving: _SERVING if serving else _NOT_SERVING)

    return {CHECK: Rpc(Category.HEALTH, check)}

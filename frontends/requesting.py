"""What a protocol's application needs of a requester."""

from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from conch.errors import Overloaded
from conch.messages import ServerSettings
from conch.requester.inference import InferenceCall, Outcome
from conch.requester.models import ModelTableView, ReadyModel
from conch.requester.regions import RegionTableView
from conch.windows import RESPONSES


class AskedLike(Protocol):
    """The part of ``conch.requester.asked.Asked`` that protocols use."""

    def cancel(self) -> None: ...


#: responses to one request that may wait for their client. No worker sends so many that are not read: beyond that, they
#: are errors, which no window holds back
MAX_WAITING: Final = 2 * RESPONSES


def flooded() -> Overloaded:
    """The last answer to a request of which more than ``MAX_WAITING`` wait."""
    return Overloaded("the model answers with errors faster than the client reads them; the request is cancelled")


#: gets one response to a request, None for an empty final one, and whether it is the last
OnResponse = Callable[[Outcome | None, bool], None]


class RequesterLike(Protocol):
    """The part of ``conch.requester.requester.Requester`` that protocols use."""

    models: ModelTableView
    regions: RegionTableView
    server_settings: ServerSettings
    on_settings: Callable[[ServerSettings], None] | None

    def ask(self, model: ReadyModel, call: InferenceCall, on_answer: Callable[[Outcome], None]) -> AskedLike: ...

    def stream(self, model: ReadyModel, call: InferenceCall, on_response: OnResponse) -> AskedLike: ...

    def call(self, message: Any) -> Coroutine[Any, Any, Any]: ...

"""``ModelStreamInfer`` with good and bad messages among each other: each good one is answered, and rightly."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tests.differential.grpc_cases import SERVICE, good, pb
from tests.scenarios.fuzz.messages import encoded, inference_messages, wire_garbage
from tests.scenarios.fuzz.running import IS_LONG, Bound, fuzzed
from tests.scenarios.fuzz.values import mostly
from tests.scenarios.fuzz.watch import DOUBLED, Finding, Watch, check_grpc, show

pytestmark = pytest.mark.timeout(0 if IS_LONG else 60)

OTHERS_EVERY = 3
_PREFIX = "good-"


class Conversation(NamedTuple):
    """``messages``: None stands for a good one. ``leaves_after``: the client goes away after so many answers."""

    messages: tuple[bytes | None, ...]
    strict: bool
    leaves_after: int | None


CONVERSATIONS = st.tuples(
    st.lists(
        mostly(
            mostly(st.none(), inference_messages().map(lambda message: message.SerializeToString(deterministic=True))),
            mostly(encoded(inference_messages()), wire_garbage()),
        ),
        min_size=1,
        max_size=10,
    ).map(tuple),
    st.booleans(),
    st.sampled_from([None, None, None, 0, 1, 2]),
).map(lambda drawn: Conversation(*drawn))


def payloads(messages: tuple[bytes | None, ...]) -> Iterator[bytes]:
    for number, message in enumerate(messages):
        yield good_message(number) if message is None else message


def good_message(number: int) -> bytes:
    request = good()
    request.id = f"{_PREFIX}{number}"
    encoded: bytes = request.SerializeToString()
    return encoded


def readable(messages: tuple[bytes | None, ...]) -> int:
    """How many there are before the first that is no request: the stream ends there."""
    for number, message in enumerate(messages):
        try:
            pb.ModelInferRequest.FromString(message or b"")
        except DecodeError:
            return number
    return len(messages)


def check_answers(conversation: Conversation, answers: list[Any], code: str) -> None:
    """Every answer says what is wrong, and those to good requests are right."""
    numbers = []
    for answer in answers:
        if "internal error" in answer.error_message:
            raise Finding(f"in a stream: {answer.error_message}")
        response = answer.infer_response
        if response.id.startswith(_PREFIX):
            numbers.append(int(response.id.removeprefix(_PREFIX)))
            if answer.error_message or response.raw_output_contents[0] != DOUBLED:
                raise Finding(f"a good request in a stream: {answer}")
    expected = readable(conversation.messages)
    asked = [number for number in range(expected) if conversation.messages[number] is None]
    if numbers != asked[: len(numbers)]:
        raise Finding(f"the good requests {asked} were answered as {numbers}")
    if conversation.leaves_after is not None or (conversation.strict and code != "OK"):
        return
    if len(answers) != expected:
        raise Finding(f"{expected} requests had {len(answers)} answers")
    if (code == "OK") != (expected == len(conversation.messages)):
        raise Finding(f"a stream of {conversation.messages} ended with {code}")


def test_streams(watch_grpc: Watch) -> None:
    bound, codes = Bound(), Counter[Any]()
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(watch_grpc.server.grpc_url, options) as channel:
        stream = channel.stream_stream(SERVICE + "ModelStreamInfer")

        def talk(conversation: Conversation) -> None:
            if bound.over:
                return
            metadata = (("triton_grpc_error", "true"),) if conversation.strict else ()
            call = stream(payloads(conversation.messages), timeout=10, metadata=metadata)
            answers: list[Any] = []
            code, text = "OK", ""
            try:
                while conversation.leaves_after is None or len(answers) < conversation.leaves_after:
                    answers.append(pb.ModelStreamInferResponse.FromString(next(call)))
                call.cancel()
            except StopIteration:
                pass
            except grpc.RpcError as error:
                code, text = error.code().name, error.details() or ""
            codes[code] += 1
            check_grpc(code, text)
            check_answers(conversation, answers, code)
            watch_grpc.lives()
            if codes.total() % OTHERS_EVERY == 0:
                watch_grpc.answers_others()

        fuzzed(250)(given(CONVERSATIONS)(talk))()
    show(watch_grpc, codes)
    watch_grpc.settled()

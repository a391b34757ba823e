"""Every RPC gets from Conch the status, its words, and the message that it gets from Triton."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from tests.differential.conftest import Both
from tests.differential.differences import GRPC_INFERENCE, GRPC_RPCS, TRITON_DIES
from tests.differential.grpc_cases import GrpcCase, inference_cases, rpc_cases
from tests.differential.outcomes import Comparison, Difference, shown

pytestmark = pytest.mark.timeout(240)


def ask(channel: grpc.Channel, case: GrpcCase) -> str:
    def encode(request: Any) -> bytes:
        encoded: bytes = request if isinstance(request, bytes) else request.SerializeToString()
        return encoded

    call = channel.unary_unary(case.method, encode, case.response.FromString)
    try:
        response = call(case.request, timeout=20)
    except grpc.RpcError as error:
        return shown(error.code().name, error.details() or "")
    return shown("OK", json_format.MessageToDict(response, preserving_proto_field_name=True), any_order=True)


def compare(both: Both, cases: Iterable[GrpcCase], differences: Sequence[Difference]) -> None:
    comparison = Comparison(differences, TRITON_DIES)
    with (
        grpc.insecure_channel(both.triton.grpc_address) as triton,
        grpc.insecure_channel(both.conch.grpc_url) as conch,
    ):
        for case in cases:
            comparison.compare(case.name, partial(ask, triton, case), partial(ask, conch, case))
            assert both.triton.ready(), f"Triton died of: {case.name}"
    comparison.check()


def test_inference(both: Both) -> None:
    compare(both, inference_cases(), GRPC_INFERENCE)


def test_rpcs(both: Both) -> None:
    compare(both, rpc_cases(), GRPC_RPCS)

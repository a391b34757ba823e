"""TLS and mutual TLS, with the official client."""

import numpy as np
import pytest
import tritonclient.grpc as client
from tritonclient.utils import InferenceServerException

from conch.errors import InvalidArgument
from conch.settings import Settings
from frontends.grpc.engines.aio import credentials
from tests.certificates import Files, needs_openssl
from tests.frontends.grpc.support import EngineName, Frontend
from tests.frontends.grpc.test_client import check, simple_inputs

pytestmark = needs_openssl


def connect(files: Files, frontend: Frontend, with_certificate: bool) -> client.InferenceServerClient:
    own = {"private_key": files.client.key, "certificate_chain": files.client.certificate} if with_certificate else {}
    return client.InferenceServerClient(
        f"localhost:{frontend.port}", ssl=True, root_certificates=files.authority.certificate, **own
    )


@pytest.mark.parametrize("mutual", [False, True])
def test_official_client(engine: EngineName, files: Files, mutual: bool) -> None:
    with Frontend(engine, **files.settings("grpc", mutual)) as frontend, connect(files, frontend, mutual) as triton:
        check(triton.infer("simple", simple_inputs()))


def test_clients_without_a_certificate(engine: EngineName, files: Files) -> None:
    with Frontend(engine, **files.settings("grpc", mutual=True)) as frontend, connect(files, frontend, False) as triton:
        with pytest.raises(InferenceServerException):
            triton.is_server_live(client_timeout=2)
        assert frontend.application.traffic.count == 0


def test_clients_without_tls(engine: EngineName, files: Files) -> None:
    with Frontend(engine, **files.settings("grpc")) as frontend, client.InferenceServerClient(frontend.url) as triton:
        with pytest.raises(InferenceServerException):
            triton.is_server_live(client_timeout=2)


def test_files_that_do_not_serve(files: Files) -> None:
    """gRPC itself would not say what is wrong with them."""
    with pytest.raises(InvalidArgument, match="are not a certificate and its key, in PEM"):
        credentials(Settings(**{**files.settings("grpc"), "grpc_server_key": files.client.key}))
    assert credentials(Settings(grpc_server_cert="/nowhere")) is None


def test_large_tensors(engine: EngineName, files: Files) -> None:
    values = np.arange(1 << 20, dtype=np.float32)
    tensor = client.InferInput("INPUT0", [1 << 20], "FP32")
    tensor.set_data_from_numpy(values)
    with Frontend(engine, **files.settings("grpc")) as frontend, connect(files, frontend, False) as triton:
        for _ in range(3):
            assert (triton.infer("echo_fp32", [tensor]).as_numpy("OUTPUT0") == values).all()

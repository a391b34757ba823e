"""TLS and mutual TLS, with the official client."""

from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as client
from tritonclient.utils import InferenceServerException

from conch.errors import InvalidArgument
from conch.settings import Settings
from frontends.grpc.engines.aio import credentials
from frontends.grpc.engines.http2 import tls_context
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


def test_files_that_do_not_serve(files: Files, tmp_path: Path) -> None:
    nonsense = str(tmp_path / "nonsense.pem")
    Path(nonsense).write_text("nonsense")
    for changed, text in (
        ({"grpc_server_cert": ""}, "--grpc-server-cert '' cannot be read"),
        ({"grpc_server_key": "/nowhere"}, "--grpc-server-key '/nowhere' cannot be read: No such file"),
        ({"grpc_server_key": files.client.key}, "are not a certificate and its key, in PEM"),
        ({"grpc_server_cert": nonsense}, "are not a certificate and its key, in PEM"),
        ({"grpc_root_cert": nonsense}, "--grpc-root-cert .* holds no usable certificate"),
    ):
        for read in (credentials, tls_context):
            with pytest.raises(InvalidArgument, match=text):
                read(Settings(**{**files.settings("grpc", mutual=True), **changed}))
    for read in (credentials, tls_context):
        assert read(Settings(grpc_server_cert="/nowhere")) is None


def test_large_tensors(engine: EngineName, files: Files) -> None:
    values = np.arange(1 << 20, dtype=np.float32)
    tensor = client.InferInput("INPUT0", [1 << 20], "FP32")
    tensor.set_data_from_numpy(values)
    with Frontend(engine, **files.settings("grpc")) as frontend, connect(files, frontend, False) as triton:
        for _ in range(3):
            assert (triton.infer("echo_fp32", [tensor]).as_numpy("OUTPUT0") == values).all()

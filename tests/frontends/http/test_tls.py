"""HTTPS, with the official client and by hand."""

import json
import ssl
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http

from tests.certificates import Certificate, Files, make, needs_openssl
from tests.frontends.http.support import Frontend, closed, read_response
from tests.frontends.http.test_slow_reader import SlowReader, check, request
from tests.frontends.http.wire import post

pytestmark = needs_openssl


def client_context(files: Files, certificate: Certificate | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.authority.certificate)
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context


@pytest.mark.parametrize("mutual", [False, True])
def test_official_client(files: Files, mutual: bool) -> None:
    numbers = np.arange(200_000, dtype=np.int32)
    put = tritonclient.http.InferInput("INPUT0", [200_000], "INT32").set_data_from_numpy(numbers)
    options = {"ca_certs": files.authority.certificate}
    if mutual:
        options |= {"certfile": files.client.certificate, "keyfile": files.client.key}
    with (
        Frontend(**files.settings("http", mutual)) as frontend,
        tritonclient.http.InferenceServerClient(f"localhost:{frontend.port}", ssl=True, ssl_options=options) as client,
    ):
        for _ in range(3):
            assert np.array_equal(client.infer("echo_int32", [put]).as_numpy("OUTPUT0"), numbers)


def is_let_in(frontend: Frontend, context: ssl.SSLContext) -> bool:
    with frontend.connect() as connection:
        try:
            with context.wrap_socket(connection, server_hostname="localhost") as tls:
                tls.sendall(post())
                return tls.recv(12) == b"HTTP/1.1 200"  # TLS 1.3: only now the client learns that it was refused
        except OSError:  # ssl.SSLError is one
            return False


def test_who_is_not_let_in(files: Files, tmp_path: Path) -> None:
    """Clients without a certificate, with one that somebody else signed, with an old TLS, without TLS."""
    stranger = make(tmp_path, "stranger", make(tmp_path, "other"))
    old = client_context(files, files.client)
    with pytest.warns(DeprecationWarning):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with Frontend(**files.settings("http", mutual=True)) as frontend:
        assert not is_let_in(frontend, client_context(files))
        assert not is_let_in(frontend, client_context(files, stranger))
        assert not is_let_in(frontend, old)
        with frontend.connect() as connection:
            connection.sendall(post())
            assert not connection.recv(100).startswith(b"HTTP")
        assert is_let_in(frontend, client_context(files, files.client))


class SlowTlsReader(SlowReader):
    def __init__(self, port: int, seed: int, context: ssl.SSLContext) -> None:
        super().__init__(port, seed)
        self.connection = context.wrap_socket(self.connection, server_hostname="localhost")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("nbytes", [64 << 10, 300 << 10, 8 << 20])
def test_memory_is_borrowed_until_it_is_encrypted(files: Files, nbytes: int) -> None:
    """What an answer borrows is overwritten when it is given back."""
    with Frontend(**files.settings("http")) as frontend:
        reader = SlowTlsReader(frontend.port, nbytes, client_context(files))
        for seed in range(max(2, min(10, (24 << 20) // nbytes))):
            sent, blob = request(seed, nbytes)
            reader.connection.sendall(sent)
            check(reader, seed, blob)
        reader.connection.close()


def test_generate_and_closing(files: Files) -> None:
    with Frontend(**files.settings("http")) as frontend, frontend.connect() as connection:
        tls = client_context(files).wrap_socket(connection, server_hostname="localhost")
        tls.sendall(
            b"POST /v2/models/echo_int32/generate_stream HTTP/1.1\r\nContent-Length: 12\r\n\r\n" + b'{"INPUT0":7}'
        )
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += tls.recv(1000)
        assert b'data: {"OUTPUT0":7,' in received
        tls.sendall(b"GET /v2 HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert json.loads(read_response(tls)[2])["name"] == "triton"
        assert closed(tls)
        tls.close()

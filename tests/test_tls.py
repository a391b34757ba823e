"""Which files serve for TLS, and what is said of those that do not."""

import subprocess
from pathlib import Path

import pytest

from conch.errors import InvalidArgument
from conch.settings import Protocol, Settings
from conch.tls import server_context
from tests.certificates import Files, needs_openssl

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_files_that_do_not_serve(files: Files, tmp_path: Path, protocol: Protocol) -> None:
    (tmp_path / "nonsense").write_text("nonsense")
    nonsense = str(tmp_path / "nonsense")
    for field, path, text in (
        ("server_cert", "", f"--{protocol}-server-cert '' cannot be read"),
        ("server_cert", "/nowhere", f"--{protocol}-server-cert '/nowhere' cannot be read: No such file"),
        ("server_key", "/nowhere", f"--{protocol}-server-key '/nowhere' cannot be read: No such file"),
        ("server_key", files.client.key, "are not a certificate and its key, in PEM"),
        ("server_cert", nonsense, "are not a certificate and its key, in PEM"),
        ("root_cert", "/nowhere", f"--{protocol}-root-cert '/nowhere' cannot be read: No such file"),
        ("root_cert", nonsense, f"--{protocol}-root-cert .* holds no usable certificate"),
    ):
        settings = {**files.settings(protocol, mutual=True), f"{protocol}_{field}": path}
        with pytest.raises(InvalidArgument, match=text):
            server_context(Settings(**settings), protocol)
    assert server_context(Settings(**files.settings(protocol, mutual=True)), protocol) is not None


def test_nothing_is_read_without_tls() -> None:
    assert server_context(Settings(http_server_cert="/nowhere"), "http") is None


def test_a_protected_key_is_refused(files: Files, tmp_path: Path) -> None:
    key = str(tmp_path / "protected.key")
    command = ["openssl", "pkey", "-in", files.server.key, "-aes256", "-passout", "pass:secret", "-out", key]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    with pytest.raises(InvalidArgument, match="protected by a password"):
        server_context(Settings(**{**files.settings("http"), "http_server_key": key}), "http")

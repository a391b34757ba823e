"""Compressed bodies."""

import gzip
import zlib

import pytest

from conch.errors import InvalidArgument, TooLarge
from frontends.http.compression import decompressed


def test_compression() -> None:
    body = b"x" * 1000
    assert decompressed(gzip.compress(body), b"gzip", 1000) == body
    assert decompressed(zlib.compress(body), b"deflate", 1000) == body
    assert decompressed(body, b"identity", 10) == body
    with pytest.raises(TooLarge, match="Decompressed data size exceeds the maximum allowed value of 999 bytes"):
        decompressed(gzip.compress(body), b"gzip", 999)
    for broken in (body, gzip.compress(body)[:-9], b""):
        with pytest.raises(InvalidArgument):
            decompressed(broken, b"gzip", 1000)

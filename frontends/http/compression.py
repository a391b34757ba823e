"""Compressed request bodies. Responses are not compressed: ``Accept-Encoding`` allows, it does not demand."""

import zlib
from typing import Final

from conch.errors import InvalidArgument, TooLarge, Unsupported
from frontends.http.request_body import Body

#: zlib finds out by itself which of the two it is
_GZIP_OR_DEFLATE: Final = 32 + zlib.MAX_WBITS


def decompressed(body: Body, encoding: bytes, max_nbytes: int) -> Body:
    """``body`` as it was before it was encoded, at most ``max_nbytes``.

    Raises ``Unsupported`` for an unknown encoding, ``TooLarge``, and ``InvalidArgument`` for broken data.
    """
    if encoding in (b"", b"identity"):
        return body
    if encoding not in (b"gzip", b"deflate"):
        raise Unsupported("Unsupported compression type")
    if not len(body):
        raise InvalidArgument("nothing to be decompressed")
    decoder = zlib.decompressobj(_GZIP_OR_DEFLATE)
    try:
        data = decoder.decompress(body, max_nbytes + 1)
    except zlib.error:
        raise InvalidArgument(f"the request body is not valid {encoding.decode()} data") from None
    if len(data) > max_nbytes:
        raise TooLarge(
            f"Decompressed data size exceeds the maximum allowed value of {max_nbytes} bytes. "
            "Use --http-max-input-size to increase the limit."
        )
    if not decoder.eof:
        raise InvalidArgument(f"the request body is not complete {encoding.decode()} data")
    return data

"""gRPC over HTTP/2 (RFC 9113 and gRPC's PROTOCOL-HTTP2), on asyncio's buffered protocols."""

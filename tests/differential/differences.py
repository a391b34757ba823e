"""Where Conch differs from Triton 2.51 on purpose, one list per kind of case; docs/compatibility.md tells users."""

import re

from tests.differential.outcomes import Difference

#: cases that end the whole of Triton 2.51, which is not asked; Conch is, and its answer must be the client's fault
TRITON_DIES = re.compile(r"inputs\.0\.shape\.0 = (2147483648|9223372036854775808|18446744073709551616)")

HTTP_INFERENCE: tuple[Difference, ...] = (
    Difference(r"inputs\.0\.shape\.0 = .*", "dies", r"[45]00 .*", "a shape too large for memory is refused"),
)
HTTP_ENDPOINTS: tuple[Difference, ...] = ()
GRPC_INFERENCE: tuple[Difference, ...] = ()
GRPC_RPCS: tuple[Difference, ...] = ()

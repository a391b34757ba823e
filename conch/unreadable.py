"""What decoding raises for bytes that are no message. For text that is no UTF-8 msgspec raises no ``DecodeError``."""

import msgspec

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

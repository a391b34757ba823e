"""``pb_utils.Logger``: lines in the server's format, with the file and line of the model's code."""

import enum
import logging

#: below "conch", so that ``--log-verbose`` turns its verbose lines on
_logger = logging.getLogger("conch.model")


class LogLevel(enum.IntEnum):
    INFO = 0
    WARNING = 1
    ERROR = 2
    VERBOSE = 3


_LEVELS = {
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
    LogLevel.VERBOSE: logging.DEBUG,
}


class Logger:
    INFO = LogLevel.INFO
    WARNING = LogLevel.WARNING
    ERROR = LogLevel.ERROR
    VERBOSE = LogLevel.VERBOSE

    @staticmethod
    def log(message: str, level: int = LogLevel.INFO) -> None:
        _logger.log(_LEVELS[LogLevel(level)], "%s", message, stacklevel=2)

    @staticmethod
    def log_info(message: str) -> None:
        _logger.info("%s", message, stacklevel=2)

    @staticmethod
    def log_warn(message: str) -> None:
        _logger.warning("%s", message, stacklevel=2)

    @staticmethod
    def log_error(message: str) -> None:
        _logger.error("%s", message, stacklevel=2)

    @staticmethod
    def log_verbose(message: str) -> None:
        _logger.debug("%s", message, stacklevel=2)


setattr(Logger, "LogLevel", LogLevel)  # noqa: B010 - as an attribute of the class body it would hide the type above

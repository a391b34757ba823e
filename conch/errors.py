"""Every error that Conch raises on purpose.

    ConchError
    ├── ClientError                the caller's fault: the same request fails again
    │   ├── InvalidArgument        wrong name, shape, datatype, count, parameter …
    │   ├── MalformedJson          not JSON, or a value of the wrong JSON type (Triton calls this internal)
    │   ├── TooLarge               over a size limit
    │   ├── NotFound               unknown model, version or region
    │   ├── AlreadyExists
    │   ├── Unsupported            a feature that is switched off, or that this endpoint does not have
    │   └── Forbidden              a restricted API
    ├── Unavailable                nobody's fault at the moment: retrying later helps
    │   ├── NotReady               the model or the server is not ready
    │   ├── Overloaded             a queue or a memory budget is full
    │   └── QueueTimeout           waited too long in a queue
    ├── Cancelled                  nobody waits for the answer any more
    └── ServerError                our fault or the model's: a retry may fail again
        ├── Internal
        ├── PollFailed             a model could not be read from its repository
        ├── ModelError             the model raised
        └── WorkerDied             the process that ran the request died, twice

An error crosses a process boundary as ``conch.messages.Fault``; every protocol translates the classes in one table of
its own. Messages are shown to clients: they hold no path, pid, address or segment name.
"""

from conch.messages import Fault


class ConchError(Exception):
    """Base of all. ``retryable`` says whether the same request may succeed later."""

    retryable = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ClientError(ConchError):
    pass


class InvalidArgument(ClientError):
    pass


class MalformedJson(ClientError):
    pass


class TooLarge(ClientError):
    pass


class NotFound(ClientError):
    pass


class AlreadyExists(ClientError):
    pass


class Unsupported(ClientError):
    pass


class Forbidden(ClientError):
    pass


class Unavailable(ConchError):
    retryable = True


class NotReady(Unavailable):
    pass


class Overloaded(Unavailable):
    pass


class QueueTimeout(Unavailable):
    pass


class Cancelled(ConchError):
    pass


class ServerError(ConchError):
    pass


class Internal(ServerError):
    pass


class PollFailed(ServerError):
    pass


class ModelError(ServerError):
    pass


class WorkerDied(ServerError):
    pass


def _classes(base: type[ConchError]) -> dict[str, type[ConchError]]:
    found = {base.__name__: base}
    for subclass in base.__subclasses__():
        found.update(_classes(subclass))
    return found


_BY_NAME = _classes(ConchError)


def to_fault(error: BaseException) -> Fault:
    """The error as data. Anything that is not a ``ConchError`` becomes ``Internal`` with a message that names only the
    type, because the text of a foreign exception may hold what a client must not see."""
    if isinstance(error, ConchError):
        return Fault(type(error).__name__, error.message)
    return Fault("Internal", f"internal error ({type(error).__name__}); the server's log has the details")


def from_fault(fault: Fault) -> ConchError:
    """The exception that ``fault`` stands for; an unknown kind becomes ``Internal``."""
    return _BY_NAME.get(fault.kind, Internal)(fault.message)

"""What a protocol hands to the requester and what it gets back: one inference, free of any protocol."""

from collections.abc import Callable

import msgspec

from conch.errors import ConchError
from conch.messages import Parameter, Parent, Sequence
from shm.lent import Lent


class RegionWindow(msgspec.Struct, frozen=True, gc=False):
    """Memory of a client: ``nbytes`` bytes at ``offset`` of a registered region. Made by the requester's
    ``regions.window``, which has checked it against the region. ``number`` is the region's."""

    name: str
    number: int
    offset: int
    nbytes: int
    cuda: bool = False


class TensorInput(msgspec.Struct, gc=False):
    """One input as the client sent it. ``data`` is the wire form: row-major little-endian elements, BYTES elements each
    behind a 4-byte length. Only the requester reads it, before ``submit`` returns; it is never kept. With a ``region``
    there is no ``data``: the tensor lies in the client's memory, where only the worker looks at it. With ``lent`` there
    is no ``data`` either: workers get the reference, and ``lent.hold`` is kept until nobody reads the inputs. Elements
    of BYTES are not looked at then: whoever reads them checks them."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview
    region: RegionWindow | None = None
    lent: Lent | None = None


class InferenceCall(msgspec.Struct):
    """One inference request, not yet validated.

    ``outputs`` empty means all. ``parameters`` holds what goes to the model: the protocol has taken out what it
    understands itself (``priority``, ``timeout``, ``sequence_*`` …). ``timeout_us`` is the client's queue time-out.
    ``deadline`` (seconds of ``time.monotonic``) is when nobody will read the answer any more. ``targets`` maps outputs
    to the clients' memory that they are to be written to. ``parent`` is the request that this one is sent for, where a
    model asks another one, and ``depth`` how many there are above it. ``trace``: its OpenTelemetry context as JSON.
    """

    inputs: list[TensorInput]
    outputs: tuple[str, ...] = ()
    client_id: str = ""
    parameters: dict[str, Parameter] = {}
    priority: int = 0
    timeout_us: int = 0
    sequence: Sequence | None = None
    deadline: float | None = None
    targets: dict[str, RegionWindow] = {}
    parent: Parent | None = None
    depth: int = 0
    trace: str = ""


class OutputTensor(msgspec.Struct, frozen=True, gc=False):
    """``data`` is the wire form, as in ``TensorInput``: ``bytes`` when it was copied, otherwise a view of a worker's
    memory that is valid until ``InferenceResult.release``. With a ``region`` there is no ``data``: the output has been
    written to the client's memory, all ``nbytes`` of that window. ``lent``: for an input of another call, where the
    requester can pass outputs on; then ``release`` gives the memory back as soon as nobody refers to ``lent``."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview
    region: RegionWindow | None = None
    lent: Lent | None = None


class InferenceResult:
    """The answer to one call. ``outputs`` are in the model's order.

    ``release`` gives the worker its memory back. It is idempotent, and must be called exactly when nobody reads
    ``outputs[...].data`` any more: when the transport's buffer is empty, not when ``write`` returned. ``borrowed`` is
    False when everything was copied (small answers): then nothing has to be waited for. A result that is dropped is
    released: the one that arrives in the moment in which its caller is cancelled reaches nobody.
    """

    __slots__ = ("_give_back", "client_id", "model_name", "model_version", "outputs", "parameters")

    def __init__(
        self,
        model_name: str,
        model_version: int,
        client_id: str,
        parameters: dict[str, Parameter],
        outputs: list[OutputTensor],
        give_back: Callable[[], None] | None,
    ) -> None:
        self.model_name = model_name
        self.model_version = model_version
        self.client_id = client_id
        self.parameters = parameters
        self.outputs = outputs
        self._give_back = give_back

    @property
    def borrowed(self) -> bool:
        return self._give_back is not None

    def release(self) -> None:
        give_back = self._give_back
        if give_back is not None:
            self._give_back = None
            self.outputs = []
            give_back()

    def __del__(self) -> None:
        if self._give_back is not None:
            self.release()


#: what becomes of a call
Outcome = InferenceResult | ConchError

"""A model that lies in its worker's name, with the worker's own objects: to frontends, and to the broker."""

from pathlib import Path

from tests.scenarios.models import write_model

HOSTILE = r"""
import array
import gc
import socket
import sys

import msgspec

#: to frontends, about the request that it was given. Whatever a client gets for it, it gets something.
ABOUT_ITS_OWN = {
    "offset beyond the segment": lambda of: of.final(of.output(offset=1 << 40)),
    "offset below zero": lambda of: of.final(of.output(offset=-8)),
    "offset of 64 bits": lambda of: of.final(of.output(offset=2**64 - 1, nbytes=2**64 - 1)),
    "size below zero": lambda of: of.final(of.output(nbytes=-1)),
    "size of 63 bits": lambda of: of.final(of.output(nbytes=2**63)),
    "unknown segment": lambda of: of.final(of.output(segment=12345)),
    "segment below zero": lambda of: of.final(of.output(segment=-1)),
    "page of leases": lambda of: of.final(of.output(segment=of.page)),
    "huge shape": lambda of: of.final(of.output(shape=(2**62, 2**62))),
    "shape of 64 bits": lambda of: of.final(of.output(shape=(2**64 - 1,))),
    "shape below zero": lambda of: of.final(of.output(shape=(-1, -8))),
    "many dimensions": lambda of: of.final(of.output(shape=(1,) * 1000)),
    "too few bytes": lambda of: of.final(of.output(datatype="INT64", nbytes=3)),
    "too many bytes": lambda of: of.final(of.output(datatype="INT8", nbytes=1024)),
    "no strings": lambda of: of.final(of.output(nbytes=5)),
    "no such datatype": lambda of: of.final(of.output(datatype="NOSUCH")),
    "no datatype": lambda of: of.final(of.output(datatype="")),
    "name of control characters": lambda of: of.final(of.output(name="\r\n\0\x7f")),
    "same output often": lambda of: of.final(*[of.output()] * 500),
    "memory of a client": lambda of: of.final(of.output(reference=of["ClientRegion"](1, 0, 8))),
    "memory of a GPU": lambda of: of.final(of.output(reference=of["CudaBlock"](bytes(64), 0, 0, 8))),
    "lease on nothing": lambda of: of.final(of.output(), lease=of["Lease"](of.segment, -1, 2**64 - 1)),
    "slot below zero": lambda of: of.final(of.output(), lease=of["Lease"](of.page, -1, 2**64 - 1)),
    "slot beyond the page": lambda of: of.final(of.output(), lease=of["Lease"](of.page, 1 << 40, 1)),
    "number below zero": lambda of: of.final(of.output(), lease=of["Lease"](of.page, 0, -1)),
    "nothing": lambda of: of.final(),
    "error of no kind": lambda of: of.final(error=of["Fault"]("SystemExit", "told to")),
    "error of the base": lambda of: of.final(error=of["Fault"]("ConchError", "")),
    "text of control characters": lambda of: of.final(error=of["Fault"]("Internal", "\r\nA: b\r\n\r\n\0\x7f\ud7ff")),
    "error and outputs": lambda of: of.final(of.output(), error=of["Fault"]("ModelError", "both")),
    "odd parameters": lambda of: of.final(of.output(), parameters={"": 2**64 - 1, "\r\n": -(2**63), "x": float("nan")}),
    "odd index": lambda of: of.final(of.output(), index=-(2**63)),
}

#: to frontends: nothing of it is an answer to the request, which is then answered as ever
BESIDE_THE_POINT = {
    "ids near its own": lambda of: [of.error(id=of.id + step, attempt=1) for step in range(-500, 500) if step],
    "small ids": lambda of: [of.error(id=id, attempt=attempt) for id in range(1000) for attempt in (1, 2)],
    "another attempt": lambda of: [of.error(attempt=attempt) for attempt in (0, -1, 2, 3, 2**64 - 1)],
    "not the last ones": lambda of: [of.error(final=False, index=index) for index in range(300)],
}

#: to frontends: no frontend can read this, or wants it
BROKEN = {
    "random bytes": lambda of: (os.urandom(100), ()),
    "half of a message": lambda of: (of.encoded(of["Responses"]((of.final(of.output()),)))[:-3], ()),
    "nothing at all but a descriptor": lambda of: (b"?", (0,)),
    "an answer with a descriptor": lambda of: (of.encoded(of["Responses"]((of.error(id=1),))), (0,)),
    "three descriptors": lambda of: (b"?", (0, 0, 0)),
    "deep nesting": lambda of: (b"\x91" * 100_000, ()),
    "another link": lambda of: of["Link"](1, "somebody"),
    "a page of no memory": lambda of: (of.encoded(of["SegmentAdded"](7, 1 << 40, True)), (0,)),
    "a segment again": lambda of: (of.encoded(of["SegmentAdded"](of.segment, 8)), (0,)),
    "no segment": lambda of: of["SegmentRetired"](12345),
    "a window": lambda of: of["Window"](of.id, 5),
}

#: to the broker, on the connection for batches
TO_THE_BROKER = {
    "unknown batch": lambda of: of.done(batch=of.batch.id + 1),
    "batch below zero": lambda of: of.done(batch=-1),
    "another epoch": lambda of: of.done(epoch=1),
    "done twice": lambda of: [of.done(), of.done()],
    "positions beyond the batch": lambda of: of.done(failed=(5, 10**6), undelivered=(7,), open=(8,), again=(9,)),
    "positions below zero": lambda of: of.done(failed=(-1, -5), open=(-9,)),
    "all at once": lambda of: of.done(failed=(0, 0), undelivered=(0, 0), open=(0, 0), again=(0, 0)),
    "never delivered": lambda of: of.done(undelivered=(0,)),
    "times of 64 bits": lambda of: of.done(started_ns=0, infer_start_ns=2**64 - 1, infer_end_ns=0, ended_ns=2**64 - 1),
    "times below zero": lambda of: of.done(started_ns=-(2**63), ended_ns=-1),
    "ends what nobody asked": lambda of: of["Closed"]("nobody", 1, 1),
    "ends what is not open": lambda of: of["Closed"](of.requester, of.id, of.attempt),
    "ready again": lambda of: of["Ready"]("another worker"),
    "a request": lambda of: of.batch.items[0].request,
    "a cancellation": lambda of: of["Cancel"](of.requester, of.id),
    "another name": lambda of: of["DataLink"](1, of.requester),
    "broken": lambda of: (os.urandom(100), ()),
}

#: to the broker, on the control connection
CONTROL = {
    "load failed": lambda of: of["LoadFailed"](of.worker, of["Fault"]("Internal", "told to")),
    "completed": lambda of: of["Completed"](of.worker, "{", False),
    "of another worker": lambda of: of["LoadFailed"]("another", of["Fault"]("Internal", "told to")),
    "checked": lambda of: of["Checked"](of.worker, -1, False),
    "an observer": lambda of: of["ObserverHello"](0, 1),
    "hello again": lambda of: of.hello(of.worker),
    "hello of another": lambda of: of.hello(of.argument),
}


def subclasses(base):
    for each in base.__subclasses__():
        yield each
        yield from subclasses(each)


class Forgery:
    def __init__(self, argument):
        self.classes = {each.__name__: each for each in subclasses(msgspec.Struct)}
        kinds = ((type(each), each) for each in gc.get_objects())
        own = {kind.__name__: each for kind, each in kinds if str(kind.__module__).startswith("workers.")}
        self.connections, self.link, self.control = own["Connections"], own["BrokerLink"], own["Control"]
        frame = sys._getframe()
        while not hasattr(frame.f_locals.get("batch"), "items"):
            frame = frame.f_back
        self.batch = frame.f_locals["batch"]
        dispatch = self.batch.items[0]
        self.requester, self.id, self.attempt = dispatch.requester, dispatch.request.id, dispatch.request.attempt
        self.channel = self.connections._channels[self.requester]
        outputs = self.connections._outputs
        outputs.take_back(outputs.lease(outputs.allocate(4096), self.requester))
        self.segment = outputs.arena.segments[0].number
        self.page = outputs._pages[0][0].number
        self.worker = self.link._worker
        self.argument = argument

    def __getitem__(self, name):
        return self.classes[name]

    def output(self, name="OUTPUT0", datatype="BYTES", shape=(1, 1), segment=None, offset=0, nbytes=8, reference=None):
        if reference is None:
            reference = self["Block"](self.segment if segment is None else segment, offset, nbytes)
        return self["TensorDescription"](name, datatype, shape, reference)

    def final(self, *outputs, **fields):
        return self["Response"](self.id, self.attempt, **{"index": 0, "final": True, "outputs": outputs, **fields})

    def error(self, **fields):
        fault = self["Fault"]("Internal", "forged")
        own = {"id": self.id, "attempt": self.attempt, "index": 0, "final": True, "error": fault}
        return self["Response"](**{**own, **fields})

    def done(self, **fields):
        now = time.monotonic_ns()
        times = dict.fromkeys(("started_ns", "infer_start_ns", "infer_end_ns", "ended_ns"), now)
        return self["Done"](**{"epoch": self.batch.epoch, "batch": self.batch.id, **times, **fields})

    def hello(self, worker):
        version = type(self.control)._say_hello.__globals__["PROTOCOL_VERSION"]
        return self["WorkerHello"](version, worker, os.getpid(), "simple", 1, 0, "", "ready")

    def send(self, group, name):
        forged = GROUPS[group][name](self)
        if group == "control":
            self.control.post(forged)
            return
        channel = self.link._channel if group == "broker" else self.channel
        if isinstance(forged, self["Response"]):
            forged = [forged]
        if isinstance(forged, list) and isinstance(forged[0], self["Response"]):
            forged = self["Responses"](tuple(forged))
        for each in forged if isinstance(forged, list) else [forged]:
            data, descriptors = each if isinstance(each, tuple) else (channel._encode(each), ())
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            channel._connection.sendmsg([data], rights)

    def encoded(self, message):
        return self.channel._encode(message)


GROUPS = {
    "own": ABOUT_ITS_OWN,
    "beside": BESIDE_THE_POINT,
    "broken": BROKEN,
    "broker": TO_THE_BROKER,
    "control": CONTROL,
}


class TritonPythonModel:
    def execute(self, requests):
        return [self.obey(request) for request in requests]

    def obey(self, request):
        order = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy().reshape(-1)[0].decode()
        group, _, name = order.partition("/")
        answer = order
        if group == "list":
            answer = "\n".join(GROUPS[name])
        elif group in GROUPS:
            name, _, argument = name.partition(":")
            Forgery(argument).send(group, name)
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", numpy.array([[answer.encode()]], numpy.object_))])
"""


def write_hostile(repository: Path, name: str = "hostile") -> None:
    """A model with one string in and out. ``group/forgery`` sends that forgery, then answers what it was told, as it
    answers everything else; ``list/group`` answers the names of a group's forgeries, one a line."""
    write_model(repository, name, HOSTILE, "STRING", [1, 1])

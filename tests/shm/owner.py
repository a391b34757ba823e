"""A process with an arena, for the tests to connect to and to kill: ``python -m tests.shm.owner SOCKET``.

It listens at SOCKET, announces its segments to whoever connects, sends a response of 3 MiB in a leased block, and then
obeys single letters on its standard input, answering each on standard output:

    r   reclaim; answers with the number of freed blocks
    f   fork a child that lives on and holds whatever a fork copies; answers with the child's pid

End of file ends it without any cleaning up, which is what the tests are about.
"""

import os
import signal
import sys
from pathlib import Path

from conch.channels.seqpacket import SeqpacketChannel, connect
from conch.messages import (
    Block,
    RequesterToWorker,
    Response,
    Responses,
    SegmentAdded,
    TensorDescription,
    WorkerToRequester,
)
from shm.arena import Arena
from shm.leases import LeasedArena

NBYTES = 3 << 20


def main() -> None:
    channel = SeqpacketChannel[WorkerToRequester, RequesterToWorker](connect(Path(sys.argv[1])), RequesterToWorker)
    arena = Arena(64 << 20, "output")
    leased = LeasedArena(arena)
    arena.on_segment_added = lambda segment: _check(
        channel.send_nowait(
            SegmentAdded(segment.number, segment.nbytes, lease_page=segment.lease_page), segment.descriptor
        )
    )
    block = leased.allocate(NBYTES)
    arena.view(block)[:] = bytes(range(256)) * (NBYTES // 256)
    tensor = TensorDescription("OUT", "UINT8", (NBYTES,), Block(block.segment, block.offset, block.nbytes))
    response = Response(1, 1, 0, final=True, outputs=(tensor,), lease=leased.lease(block, "test"))
    _check(channel.send_nowait(Responses((response,))))
    for line in sys.stdin:
        if line == "r\n":
            print(leased.reclaim(), flush=True)
        elif line == "f\n":
            read_end, write_end = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(write_end, b"x")
                signal.pause()
            os.read(read_end, 1)  # the child is running Python
            print(child, flush=True)
    os._exit(0)


def _check(sent: bool) -> None:
    assert sent


if __name__ == "__main__":
    main()

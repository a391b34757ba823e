"""A worker process that reads one input of a requester's and says what it found: digest and length.

``python -m tests.requester.reader RUN_DIR REQUESTER SEGMENT OFFSET NBYTES``
"""

import hashlib
import select
import sys

from conch.channels.seqpacket import SeqpacketChannel, connect
from conch.messages import PROTOCOL_VERSION, Block, Link, RequesterToWorker, SegmentAdded, WorkerToRequester
from conch.run_dir import RunDir
from shm.mapping import Mappings


def main() -> None:
    run_dir, requester, *place = sys.argv[1:]
    block = Block(*map(int, place))
    channel: SeqpacketChannel[WorkerToRequester, RequesterToWorker] = SeqpacketChannel(
        connect(RunDir(run_dir).requester_socket(requester)), RequesterToWorker
    )
    channel.send_nowait(Link(PROTOCOL_VERSION, "reader"))
    mappings = Mappings()
    while block.segment not in mappings:
        select.select([channel.fileno()], [], [], 10.0)
        received = channel.receive_nowait()
        if received is not None:
            message, descriptor = received
            assert isinstance(message, SegmentAdded) and descriptor is not None
            mappings.add(message.segment, descriptor, message.lease_page)
    view = mappings.view(block)
    print(hashlib.sha256(view).hexdigest(), len(view), flush=True)


if __name__ == "__main__":
    main()

"""The memory of large bodies: used again, but never while anybody still looks at it."""

import gc

from frontends.http.buffers import IDLE_SECONDS, SPARE_NBYTES, BodyBuffers

MIB = 1 << 20


def test_a_buffer_comes_back_with_its_last_view() -> None:
    buffers = BodyBuffers()
    first = buffers.take(100_000)
    first[:5] = b"first"
    kept = memoryview(first)[:5].toreadonly()
    del first
    gc.collect()
    assert buffers.spare_nbytes == 0
    second = buffers.take(100_000)
    second[:] = b"x" * 100_000
    assert bytes(kept) == b"first"
    del kept
    assert buffers.spare_nbytes == MIB
    third = buffers.take(MIB)
    assert buffers.spare_nbytes == 0
    assert bytes(third[:5]) == b"first"  # the same memory
    assert len(third) == MIB


def test_the_smallest_that_fits() -> None:
    buffers = BodyBuffers()
    lent = [buffers.take(nbytes) for nbytes in (4 * MIB, 2 * MIB, 3 * MIB)]
    lent.clear()
    assert buffers.spare_nbytes == 9 * MIB
    taken = buffers.take(2 * MIB - 5)
    assert buffers.spare_nbytes == 7 * MIB
    assert len(taken) == 2 * MIB - 5
    larger = buffers.take(5 * MIB)
    assert buffers.spare_nbytes == 7 * MIB
    del taken, larger
    assert buffers.spare_nbytes == 14 * MIB


def test_what_is_kept_is_bounded_and_retired() -> None:
    buffers = BodyBuffers()
    lent = [buffers.take(SPARE_NBYTES // 2 + 1) for _ in range(3)]
    lent.append(buffers.take(2 * SPARE_NBYTES))
    lent.clear()
    assert SPARE_NBYTES // 2 < buffers.spare_nbytes <= SPARE_NBYTES
    buffers.retire_idle(IDLE_SECONDS - 1)
    assert buffers.spare_nbytes > 0
    buffers.retire_idle(IDLE_SECONDS + 1)
    assert buffers.spare_nbytes == 0


def test_a_promise_costs_nothing() -> None:
    buffers = BodyBuffers()
    before = _resident_nbytes()
    promised = [buffers.take((1 << 31) - 1) for _ in range(8)]
    assert _resident_nbytes() - before < 16 * MIB
    promised.clear()


def _resident_nbytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

"""How many responses to one decoupled request may be under way: agreed between a worker and whoever asked.

The worker sends until ``RESPONSES`` responses, or ``NBYTES`` bytes of them, have not been read; then whoever sends
waits. The requester says with ``Window`` what has been read, at the latest after ``READ_RESPONSES`` responses or
``READ_NBYTES`` bytes: sooner than the worker can have to wait for it.
"""

#: a language model's whole answer, as a rule: a client that reads it slowly then holds up nobody
RESPONSES = 1024
NBYTES = 32 << 20
READ_RESPONSES = 32
READ_NBYTES = 1 << 20

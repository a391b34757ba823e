"""What ``conch debug`` and the worker that it attaches to have to agree about."""

#: a worker's last words to a terminal that detaches; without them, the process has ended
DETACHED = "detached, the model goes on\n"

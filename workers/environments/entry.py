"""The first file of a worker in an environment of its own: ``ENV/bin/python entry.py OURS FOLDERS``.

It is run by that environment's interpreter, which need not know any of our modules nor what they need. ``OURS`` holds
our packages and nothing else; ``FOLDERS``, a JSON list, come behind everything that the interpreter finds by itself.
"""

import json
import os
import sys


def main() -> None:
    here = os.path.dirname(os.path.realpath(__file__))
    ours, behind = sys.argv[1], json.loads(sys.argv[2])
    del sys.argv[1:]
    found = [folder for folder in sys.path if os.path.realpath(folder) != here]  # Python puts that first
    # first of all, or a package of the environment could have one of our names
    sys.path[:] = [ours, *found, *behind]
    from workers.environments.inside import run

    sys.path[:] = [*found, *behind, ours]
    run()


if __name__ == "__main__":
    main()

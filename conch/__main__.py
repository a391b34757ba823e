"""``python -m conch`` is the ``conch`` command."""

import sys

from conch.cli.main import main

sys.exit(main())

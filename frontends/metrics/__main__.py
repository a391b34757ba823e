import sys

from frontends.metrics.server import main

sys.exit(main())

import sys

from frontends.http.server import main

sys.exit(main())

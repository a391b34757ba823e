import sys

from frontends.grpc.server import main

sys.exit(main())

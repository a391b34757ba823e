"""What the requester's tests share with the frontends'."""

from tests.frontends.conftest import uvloop_is_warm  # noqa: F401 - a fixture of every test

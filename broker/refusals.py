"""What requests for a model version are refused with that does not serve at the moment."""

from conch import refusals
from conch.messages import Fault


def not_ready(name: str, version: int) -> Fault:
    """Triton's words."""
    return Fault("NotReady", f"Request for unknown model: '{name}' version {version} is not at ready state")


def keeps_crashing(name: str, version: int) -> Fault:
    return Fault("NotReady", refusals.keeps_crashing(name, version))

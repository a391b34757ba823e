"""``--watch``: which models' files have changed and have come to rest, so that they are to be loaded again."""

import logging
from collections.abc import Collection, Mapping

from broker.lifecycle.models import Model

logger = logging.getLogger("conch.broker.watching")

#: between two looks; what has changed is loaded when it is the same in two looks, so that nothing half-written is
LOOK_S = 0.5


class Watching:
    """Knows, of each model, the digest of its files that was seen last, and the one for which a load was asked for."""

    def __init__(self) -> None:
        self._seen: dict[str, bytes] = {}
        self._tried: dict[str, bytes] = {}

    def looked(self, digests: Mapping[str, bytes], models: Mapping[str, Model], may_come: Collection[str]) -> list[str]:
        """The models to load, given the digest of each one's files now. ``may_come`` are loaded even if they are not
        among ``models``."""
        changed = []
        watched = {
            name: digest
            for name, digest in digests.items()
            if (_may_change(models[name]) if name in models else name in may_come)
        }
        for name, digest in watched.items():
            known = name in models
            if known and not models[name].digest:  # it could not even be read
                self._tried.setdefault(name, digest)
            if digest in (self._tried.get(name), models[name].digest if known else b""):
                continue
            if digest == self._seen.get(name):
                logger.info("'%s' has changed, it is loaded again" if known else "'%s' is new, it is loaded", name)
                self._tried[name] = digest
                changed.append(name)
        for name in self._tried.keys() - digests.keys():
            del self._tried[name]
        self._seen = watched
        return changed


def _may_change(model: Model) -> bool:
    """Not while something is done to it anyway, nor if it was unloaded on purpose or came with a load call."""
    if model.operations or model.override.folder:
        return False
    return not model.slots or any(slot.reason != "unloaded" for slot in model.slots.values())

"""``--watch``: which models' files have changed and have come to rest, so that they are to be loaded again."""

import logging
from collections.abc import Collection, Mapping

from broker.lifecycle.models import Model

logger = logging.getLogger("conch.broker.watching")

#: between two looks; what has changed is loaded when it is the same in two looks, so that nothing half-written is
LOOK_S = 0.5


class Watching:
    """Knows, of each model, the digest of its files that is loaded, or was tried, and the one that was seen last."""

    def __init__(self) -> None:
        self._loaded: dict[str, bytes] = {}
        self._seen: dict[str, bytes] = {}

    def looked(self, digests: Mapping[str, bytes], models: Mapping[str, Model], may_come: Collection[str]) -> list[str]:
        """The models to load, given the digest of each one's files now. Those of ``models`` count as loaded as they are
        seen first; ``may_come`` are loaded even if they are not among them."""
        changed = []
        watched = {
            name: digest
            for name, digest in digests.items()
            if (_may_change(models[name]) if name in models else name in may_come)
        }
        for name, digest in watched.items():
            loaded = self._loaded.get(name)
            if loaded is None and name in models:
                self._loaded[name] = digest
            elif digest != loaded and digest == self._seen.get(name):
                logger.info("'%s' has changed, it is loaded again" if loaded else "'%s' is new, it is loaded", name)
                self._loaded[name] = digest
                changed.append(name)
        for name in self._loaded.keys() - digests.keys():
            del self._loaded[name]
        self._seen = watched
        return changed


def _may_change(model: Model) -> bool:
    """Not while something is done to it anyway, nor if it was unloaded on purpose or came with a load call."""
    if model.operations or model.override.folder:
        return False
    return not model.slots or any(slot.reason != "unloaded" for slot in model.slots.values())

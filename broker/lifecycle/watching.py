"""``--watch``: which models' files have changed and have come to rest, so that they are to be loaded again."""

import logging
from collections.abc import Collection, Mapping

from broker.lifecycle.models import Model
from broker.repository.scan import Found

logger = logging.getLogger("conch.broker.watching")

#: between two looks; what has changed is loaded when it is the same in two looks, so that nothing half-written is
LOOK_S = 0.5
#: between two looks at which folders there are
FIND_S = 1.0


class Watching:
    """Knows, of each model, the digest of its files that was seen last, and the one for which a load was asked for."""

    def __init__(self) -> None:
        self._seen: dict[str, bytes] = {}
        self._tried: dict[str, bytes] = {}
        #: without a folder, at the last look; those that were unloaded for it
        self._missing: set[str] = set()
        self._deleted: set[str] = set()

    def looked(self, digests: Mapping[str, bytes], models: Mapping[str, Model], may_come: Collection[str]) -> list[str]:
        """The models to load, given the digest of each one's files now. ``may_come`` are loaded even if they are not
        among ``models``."""
        changed = []
        self._deleted = {name for name in self._deleted if name in models and not models[name].serving}
        returning = self._deleted & set(may_come)
        watched = {
            name: digest
            for name, digest in digests.items()
            if (_may_change(models[name], name in returning) if name in models else name in may_come)
        }
        for name, digest in watched.items():
            known = name in models and name not in returning
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

    def deleted(self, found: Found, models: Mapping[str, Model]) -> list[str]:
        """The models to unload, given the folders that there are. What is missing in one look may just be being
        replaced."""
        if not found.complete:
            return []
        names = set(found.names)
        missing = {
            name
            for name, model in models.items()
            if model.wanted and not model.operations and not model.override.folder and name not in names
        }
        gone = sorted(missing & self._missing)
        for name in gone:
            logger.info("the folder of '%s' is gone, it is unloaded", name)
        self._missing = missing
        self._deleted.update(gone)
        return gone


def _may_change(model: Model, returning: bool) -> bool:
    """Not while something is done to it anyway, nor if it was unloaded on purpose or came with a load call."""
    if model.operations or model.override.folder:
        return False
    return returning or not model.slots or any(slot.reason != "unloaded" for slot in model.slots.values())

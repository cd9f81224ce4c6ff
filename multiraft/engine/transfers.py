"""Files of snapshots on their way to this node and from it: what the engine says to both directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multiraft.engine.fetching import Fetching
from multiraft.engine.serving import Serving
from multiraft.ports import Store, Transport

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine


class Transfers:
    """Both directions of one engine.

    fetching  files that come here
    serving   files that go to others
    """

    def __init__(self, engine: Engine, store: Store, transport: Transport) -> None:
        self.serving = Serving(engine, store.files)
        self.fetching = Fetching(engine, store.files, transport)
        engine.shelving.keeps = self.protects
        engine.shelving.fetches = self.fetching.fetches
        self.serving.released = engine.shelving.sweep_soon

    def tick(self, now: float) -> None:
        """Once a beat."""
        self.fetching.tick(now)
        self.serving.tick(now)

    def stop(self) -> None:
        """The engine ends."""
        self.fetching.stop()

    def protects(self, name: str) -> bool:
        """Whether nobody may delete the file of that name now."""
        return self.serving.pinned(name) or self.fetching.keeps(name)

    def status(self) -> dict[str, list[dict[str, Any]]]:
        """Describe what is on its way: "incoming" and "outgoing"."""
        return {"incoming": self.fetching.status(), "outgoing": self.serving.status()}

"""Who wants to hear of changes in a ledger."""

import logging
import threading
from collections.abc import Callable

_logger = logging.getLogger(__name__)


class Listeners:
    """Thread-safe. A listener that fails harms nobody else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[object, Callable[[str | None], None]] = {}

    def subscribe(self, listener: Callable[[str | None], None]) -> Callable[[], None]:
        """See `Ledger.subscribe`."""
        token = object()
        with self._lock:
            self._listeners[token] = listener

        def end() -> None:
            with self._lock:
                self._listeners.pop(token, None)

        return end

    def tell(self, topic: str | None) -> None:
        """Calls all of them."""
        with self._lock:
            listeners = list(self._listeners.values())
        for listener in listeners:
            try:
                listener(topic)
            except Exception:
                _logger.exception("a listener to the job store failed")

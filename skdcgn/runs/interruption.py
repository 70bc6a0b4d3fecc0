"""What keeps runs reproducible and alive: seeding, device and precision, atomic files, checkpoints, signals."""

import signal
from typing import Any

from skdcgn.errors import Interrupted


class Interruption:
    """Turns SIGINT and SIGTERM into a request that the training loop honours between two steps.

    A second signal ends the process the ordinary way, for those who cannot wait.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _request(self, signum: int, _frame: object) -> None:
        self.signum = signum
        signal.signal(signum, self._previous[signum])

    def check(self) -> None:
        """Raise `Interrupted` if a signal came in since the block was entered."""
        if self.signum is not None:
            raise Interrupted(self.signum)

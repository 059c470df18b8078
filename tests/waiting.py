"""Waits for events with one generous limit, which only a test that fails reaches."""

import time
from collections.abc import Callable

LIMIT_SECONDS = 600.0
"""Beside other programs a test may take twenty times as long as alone."""


def wait_for(
    happened: Callable[[], object],
    what: object = "what the test waits for did not happen",
    pause: float = 0.02,
) -> None:
    """Returns once `happened()` is true. Fails with `what`, called if possible, after the limit."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(pause)

"""A circuit breaker (Michael Nygard, Release It!, 2007): stop calling a service that keeps failing, for a while.

*Closed*, it lets every call through. After some failures in a row it is *open*, and refuses calls at once. After a
rest it is *half open*: it lets one call through, whose outcome decides.
"""

import math
import time
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

from mesh_lab.errors import CircuitOpenError

T = TypeVar("T")
State = Literal["closed", "open", "half open"]


class CircuitBreaker:
    """Guards calls to one service; all its callers should share one breaker."""

    def __init__(self, *, failures: int = 5, rest: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Make a breaker that is closed.

        Args:
            failures: How many in a row open it.
            rest: Seconds until one call is let through again.
            clock: Returns seconds; for tests.

        Raises:
            ValueError: A number is out of its range.
        """
        if failures < 1 or not 0 < rest < math.inf:
            raise ValueError(f"failures={failures}, rest={rest}: expected 1 or more, and above 0")
        self.failures, self.rest, self._clock = failures, rest, clock
        self._in_a_row, self._opened, self._trying = 0, 0.0, False
        self._period = 0  # how often it opened or closed

    @property
    def state(self) -> State:
        """State that the next call will meet."""
        if self._in_a_row < self.failures:
            return "closed"
        return "half open" if self._clock() - self._opened >= self.rest and not self._trying else "open"

    async def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what the work returns, or refuse to begin it.

        Args:
            work: Calls the service, with a timeout of its own: a cancelled call does not count. What it raises counts
                as a failure; a refusal that the service decided on should be a value.

        Raises:
            CircuitOpenError: The service was not called; ``retry_after`` says when it is worth trying again.
            Exception: What the work raised.
        """
        state = self.state
        if state == "open":
            left = self.rest if self._trying else max(0.0, self.rest - (self._clock() - self._opened))
            raise CircuitOpenError(
                f"{self._in_a_row} calls in a row failed; try again in {left:.1f} s", retry_after=left
            )
        trial, period = state == "half open", self._period
        if trial:
            self._trying = True
        # A call that began before the last change does not count: it may fail long after the breaker closed again.
        try:
            result = await work()
        except Exception:  # a cancellation is none: it says nothing about the service
            if trial or period == self._period:
                self._in_a_row += 1
                self._opened = self._clock()
                self._period += self._in_a_row >= self.failures
            raise
        else:
            if trial or period == self._period:
                self._in_a_row = 0
                self._period += trial
            return result
        finally:
            if trial:
                self._trying = False

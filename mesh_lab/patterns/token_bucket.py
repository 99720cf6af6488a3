"""A token bucket: keeps a publisher to a rate, or a service to the rate that it promised.

Tokens fall into the bucket at a steady rate until it is full; each message takes one.
"""

import asyncio
import math
import time
from collections.abc import Callable


class TokenBucket:
    """Lets messages pass at a rate, in bursts of a bounded size."""

    def __init__(self, rate_per_s: float, *, burst: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with a full bucket.

        Args:
            rate_per_s: Tokens that are added in a second.
            burst: Tokens that the bucket holds; 1 spaces messages evenly, more lets a publisher catch up.
            clock: Returns seconds, never backwards.

        Raises:
            ValueError: A number is out of its range.
        """
        if not (0 < rate_per_s < math.inf and 1 <= burst < math.inf):
            given = f"rate_per_s={rate_per_s}, burst={burst}"
            raise ValueError(f"{given}: expected a finite rate above 0 and a burst of 1 or more")
        self._rate_per_s, self._burst, self._clock = rate_per_s, burst, clock
        self._tokens = float(burst)
        self._filled_at = clock()
        self._turn = asyncio.Lock()

    def take(self) -> float:
        """Take a token and return 0.0; or take none, and return in how many seconds there will be one."""
        self._fill()
        if self._tokens < 1 - 1e-9:  # what is added in many small steps may not add up to a whole one
            return (1 - self._tokens) / self._rate_per_s
        self._tokens -= 1
        return 0.0

    async def wait(self) -> None:
        """Take a token, and return when it is there; callers are served in their order."""
        async with self._turn:  # sleeps that end close together may end in another order, where the machine stalls
            self._fill()
            self._tokens -= 1  # also one that is not there yet
            if self._tokens < 0:
                try:
                    await asyncio.sleep(-self._tokens / self._rate_per_s)
                except asyncio.CancelledError:
                    self._tokens += 1  # nothing will be sent for it
                    raise

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(float(self._burst), self._tokens + (now - self._filled_at) * self._rate_per_s)
        self._filled_at = now

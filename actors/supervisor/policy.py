"""When to start a dead actor again.  Pure: time comes in as an argument."""

from collections.abc import Sequence

import msgspec


class RestartPolicy(msgspec.Struct, frozen=True):
    """Wait longer after each death; give up when there were `max_deaths` within `window_s`."""

    first_delay_s: float = 0.1
    max_delay_s: float = 3.0
    window_s: float = 60.0
    max_deaths: int = 12

    def delay_s(self, deaths_s: Sequence[float], now_s: float) -> float | None:
        """Seconds until the next start, or None: so many deaths in `window_s` mean that the cause stays.

        `deaths_s` are the times of all deaths so far, on the clock of `now_s`.
        """
        n_recent = sum(now_s - death_s < self.window_s for death_s in deaths_s)
        if n_recent >= self.max_deaths:
            return None
        return min(self.first_delay_s * 2 ** max(0, n_recent - 1), self.max_delay_s)

    def recent(self, deaths_s: Sequence[float], now_s: float) -> list[float]:
        """The deaths that still count, so that the list of them has a bound."""
        return [death_s for death_s in deaths_s if now_s - death_s < self.window_s]

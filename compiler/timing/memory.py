"""Memory as the machine sees it: one pipe of read beats, one of write beats, both in order."""

from collections.abc import Mapping
from dataclasses import dataclass

from systolith.config import Config
from systolith.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Memory:
    """``latency``: cycles from a read's address to its first beat. ``write_latency``: from the last
    beat of a write to its response. ``bandwidth``: beats in 256 cycles, each way, at most 256. The
    same settings as in `sim/axi_memory.sv`."""

    latency: int = 40
    write_latency: int = 0
    bandwidth: int = 256

    @classmethod
    def from_settings(cls, settings: Mapping[str, int]) -> "Memory":
        """From the settings of a simulated memory; random stalls are left out."""
        return cls(
            latency=settings.get("latency", 0),
            write_latency=settings.get("write_latency", 0),
            bandwidth=min(settings.get("bandwidth", 0) or 256, 256),
        )

    @classmethod
    def of(
        cls,
        config: Config,
        *,
        latency: int,
        write_latency: int = 0,
        bus_bytes_per_cycle: float | None = None,
    ) -> "Memory":
        """A memory of so many bytes a cycle; None: the width of the bus.

        Raises ``UserError`` for a rate of less than a 256th of the bus.
        """
        if latency < 0:
            raise UserError(f"The latency must be at least 0 cycles, not {latency}")
        if bus_bytes_per_cycle is None:
            return cls(latency=latency, write_latency=write_latency)
        bandwidth = min(round(256 * bus_bytes_per_cycle / config.bus_bytes), 256)
        if bandwidth < 1:
            raise UserError(
                f"Memory must deliver at least {config.bus_bytes / 256} bytes per cycle, not "
                f"{bus_bytes_per_cycle}"
            )
        return cls(latency=latency, write_latency=write_latency, bandwidth=bandwidth)


_BEAT = 256
"""Credit that a beat costs; each cycle adds ``bandwidth`` to it."""


class Pipe:
    """Beats of bursts in the order of their requests, no faster than the bandwidth allows.

    Credit that is kept while nothing moves is worth less than one beat.
    """

    def __init__(self, bandwidth: int) -> None:
        self.bandwidth = bandwidth
        self.last = -_BEAT  # cycle of the last beat
        self.credit = _BEAT - 1  # after that
        self.beats = 0

    def take(self, due: int, beats: int) -> tuple[int, int]:
        """(first, last) cycle of a burst of ``beats`` that may begin in cycle ``due``."""
        self.beats += beats
        rate = self.bandwidth
        first = max(due, self.last - (self.credit - _BEAT) // rate)
        saved = min(self.credit + (first - self.last - 1) * rate, _BEAT - 1)
        credit = saved + rate - _BEAT
        more = _BEAT * (beats - 1)
        self.last = first - (credit - more) // rate if beats > 1 else first
        self.credit = credit + (self.last - first) * rate - more
        return first, self.last

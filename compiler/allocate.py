"""Allocation of local memories at compile time."""

from systolith.errors import UserError


class DoesNotFit(UserError):
    """A model or block size that a configuration has no room for."""


class Ring:
    """Hands out consecutive regions round and round: the oldest data is overwritten first.

    Semaphores, not this class, keep a new owner from overwriting data that is still in use.
    """

    def __init__(self, name: str, start: int, stop: int) -> None:
        self.name = name
        self.start = start
        self.stop = stop
        self._next = start

    def take(self, rows: int) -> int:
        """First row of ``rows`` consecutive rows."""
        if rows > self.stop - self.start:
            raise DoesNotFit(
                f"The {self.name} memory has {self.stop - self.start} rows for this and {rows} are "
                "needed: choose a configuration with a larger one"
            )
        if self._next + rows > self.stop:
            self._next = self.start
        first = self._next
        self._next += rows
        return first


class Pool:
    """First-fit allocation with release, for tensors with a lifetime. Starts are even."""

    def __init__(self, name: str, rows: int) -> None:
        self.name = name
        self.rows = rows
        self.peak = 0
        self._used: dict[int, int] = {}

    def take(self, rows: int) -> int:
        """First row of a free region of ``rows`` rows."""
        rows += rows & 1
        first = 0
        for start, size in sorted(self._used.items()):
            if start - first >= rows:
                break
            first = start + size
        if first + rows > self.rows:
            used = sum(self._used.values())
            raise DoesNotFit(
                f"The {self.name} memory has {self.rows} rows, {used} of them in use, and {rows} "
                "more are needed: choose a configuration with a larger one, or a smaller context"
            )
        self._used[first] = rows
        self.peak = max(self.peak, first + rows)
        return first

    def release(self, first: int) -> None:
        """Frees the region that starts at ``first``."""
        del self._used[first]

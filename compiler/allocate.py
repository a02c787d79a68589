"""Allocation of local memories at compile time."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from systolith.errors import UserError

Made = TypeVar("Made")


class DoesNotFit(UserError):
    """A model or block size that a configuration has no room for."""


def first_that_fits(make: Callable[..., Made], choices: Sequence[tuple[Any, ...]]) -> Made:
    """``make(*choice)`` of the first choice that fits; raises what the last one raised."""
    failure: DoesNotFit | None = None
    for choice in choices:
        try:
            return make(*choice)
        except DoesNotFit as error:
            failure = error
    assert failure is not None, "there is at least one choice"
    raise failure


class Ring:
    """Hands out consecutive regions round and round: the oldest data is overwritten first.

    Semaphores, not this class, keep a new owner from overwriting data that is still read by earlier
    instructions. What later instructions still need must be held (``take(..., hold=True)``).

    ``regions``: how many are handed out in a round. Each that is used again has a signal for its
    new owner; those that wait to be taken must not exceed what a semaphore counts to.
    """

    def __init__(self, name: str, start: int, stop: int, regions: int | None = None) -> None:
        self.name = name
        self.start = start
        self.stop = stop
        self._regions = regions
        self._given = 0
        self._next = start
        self._held: dict[int, int] = {}
        self._kept: dict[str, tuple[int, int]] = {}

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def free(self) -> int:
        """Rows that nobody holds."""
        return self.rows - sum(end - first for first, end in self._held.items())

    def take(self, rows: int, *, hold: bool = False) -> int:
        """First row of ``rows`` consecutive rows, none of which is held."""
        if self._given == self._regions:
            self._next, self._given = self.start, 0
        for candidate in (self._next, self.start, *sorted(self._held.values())):
            if candidate + rows <= self.stop and not any(
                first < candidate + rows and candidate < end for first, end in self._held.items()
            ):
                self._next = candidate + rows
                self._given += 1
                self._forget(candidate, self._next)
                if hold:
                    self._held[candidate] = self._next
                return candidate
        raise DoesNotFit(
            f"The {self.name} memory has {self.rows} rows for this, and {rows} more "
            "are needed at once: choose a configuration with a larger one, or a smaller context"
        )

    def release(self, first: int) -> None:
        """Lets go of a held region."""
        del self._held[first]

    def keep(self, name: str, rows: int) -> tuple[int, bool]:
        """First row of a region with constants, and whether they are there already.

        They are until another owner takes one of the rows.
        """
        if name in self._kept:
            return self._kept[name][0], True
        first = self.take(rows)
        self._kept[name] = first, first + rows
        return first, False

    def forget(self) -> None:
        """Constants that were kept are not there any more; the next region is the first one."""
        self._kept.clear()
        self._next = self.start

    def _forget(self, start: int, stop: int) -> None:
        for name, (first, end) in list(self._kept.items()):
            if first < stop and start < end:
                del self._kept[name]


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

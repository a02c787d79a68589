"""Watching nextpnr's router2, which rips up wires that are late until all are in time.

Where there is no way for some of them it goes on for ever; it is then stopped, and asked for a
slower clock. Placement does not depend on the clock that is asked for, so nothing else changes.
"""

import math
import re

_ROUND = re.compile(r"iter=\d+ .*overused=(\d+) .*tmgfail=(\d+)")
_PATIENCE = 150
"""Rounds without fewer wires that are late, or in each other's way. Routing that ended had 55 of
them at most, and late rounds take a second."""
_PLACED = re.compile(r"Max frequency for clock .*: ([\d.]+) MHz")
_GAIN = 1.2
"""What the router makes of the clock that the placer expects, at most, as far as was seen."""
_STEP = 0.93
MARGIN = 1.02
"""What the router is asked for, over the clock that is wanted: the analysis behind it found clocks
up to 1 % slower than it believed."""


def stalls(log: str) -> bool:
    """Whether the router ever got no fewer wires that are late for too long.

    ``log``: nextpnr's so far. What was true stays true: when the log is looked at does not matter.
    """
    best, since = math.inf, 0
    for overused, late in _ROUND.findall(log):
        bad = int(overused) + int(late)
        best, since = (bad, 0) if bad < best else (best, since + 1)
        if best > 0 and since >= _PATIENCE:
            return True
    return False


def slower(mhz: float, log: str) -> float:
    """The clock to ask for where ``mhz`` stalled with this log."""
    expected = [float(text) for text in _PLACED.findall(log)]
    return min([_STEP * mhz, *(_GAIN * one for one in expected[:1])])

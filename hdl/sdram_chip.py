"""What an SDRAM controller has to know of a chip, and the chips of the boards."""

from dataclasses import dataclass
from math import ceil, floor


@dataclass(frozen=True, kw_only=True)
class SdramChip:
    """A single-data-rate SDRAM. All ``t_*`` are minimal times in ns, as data sheets name them."""

    name: str
    rows: int
    """Rows of a bank."""
    columns: int
    """Words of a row."""
    banks: int
    data_bits: int
    """Width of a word: 8, 16 or 32."""
    cl2_mhz: float
    """The fastest clock with a CAS latency of 2."""
    cl3_mhz: float
    """The fastest clock with a CAS latency of 3."""
    t_rcd: float
    """ACTIVE to READ or WRITE."""
    t_rp: float
    """PRECHARGE to ACTIVE or REFRESH."""
    t_ras: float
    """ACTIVE to PRECHARGE."""
    t_rc: float
    """ACTIVE to ACTIVE of the same bank."""
    t_rrd: float
    """ACTIVE to ACTIVE of another bank."""
    t_rfc: float
    """REFRESH to anything."""
    t_wr: float
    """Last word written to PRECHARGE."""
    t_refi: float
    """One REFRESH on the average; the only time that is a maximum."""
    t_power_up: float = 200_000.0
    """Stable clock to the first command."""
    mode_cycles: int = 2
    """LOAD MODE to anything, in cycles."""
    init_refreshes: int = 8
    """REFRESH commands before the first access."""

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "banks"):
            value = getattr(self, name)
            if value < 2 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two of at least 2, not {value!r}")
        if self.data_bits not in (8, 16, 32):
            raise ValueError(f"data_bits must be 8, 16 or 32, not {self.data_bits!r}")

    @property
    def size_bytes(self) -> int:
        return self.rows * self.columns * self.banks * self.data_bits // 8

    @property
    def address_bits(self) -> int:
        """Width of the pins A: rows need them, and column commands A10 beside the column."""
        columns = (self.columns - 1).bit_length()
        return max((self.rows - 1).bit_length(), 11, columns + 1 if columns > 10 else 0)

    def cas_latency(self, clock_hz: float) -> int:
        """The smallest CAS latency at a clock; ``ValueError`` where the clock is too fast."""
        mhz = clock_hz / 1e6
        if mhz > self.cl3_mhz:
            raise ValueError(
                f"The clock of {self.name} must be at most {self.cl3_mhz:g} MHz, not {mhz:g}"
            )
        return 2 if mhz <= self.cl2_mhz else 3


@dataclass(frozen=True)
class SdramCycles:
    """The times of a chip in whole cycles of a clock: minima rounded up, the maximum down."""

    cas: int
    rcd: int
    rp: int
    ras: int
    rfc: int
    wr: int
    refi: int
    power_up: int
    mode: int

    @classmethod
    def of(cls, chip: SdramChip, clock_hz: float) -> "SdramCycles":
        def least(ns: float) -> int:
            return max(1, ceil(ns * clock_hz / 1e9 - 1e-6))

        rp, rcd = least(chip.t_rp), least(chip.t_rcd)
        cycles = cls(
            cas=chip.cas_latency(clock_hz),
            rcd=rcd,
            rp=rp,
            # A bank is activated again after its precharge only: tRC becomes a part of tRAS.
            ras=max(least(chip.t_ras), least(chip.t_rc) - rp),
            rfc=least(chip.t_rfc),
            wr=least(chip.t_wr),
            refi=floor(chip.t_refi * clock_hz / 1e9),
            power_up=least(chip.t_power_up),
            mode=chip.mode_cycles,
        )
        if least(chip.t_rrd) > rcd + 1:
            raise ValueError(f"t_rrd must be at most t_rcd and a cycle, not {chip.t_rrd!r} ns")
        if cycles.refi < 8 * (cycles.rfc + cycles.rp):
            raise ValueError(f"The clock of {chip.name} is too slow to refresh it: {clock_hz:g} Hz")
        return cycles


# 8192 rows of 512 words of 16 bits in four banks, 32 MB. Boards carry different makes: each time is
# the slowest of IS42S16160 (tRP, tRCD, tWR 20, tRFC 70 ns) and MT48LC16M16 (tRP, tRCD 20, tRAS 44,
# tRFC 66, tRRD 15, tWR 15 ns) as LiteDRAM's modules.py has them, and AS4C16M16SA-7 (tRC, tRFC 63,
# tRCD, tRP 21, tRAS 42, tRRD, tWR 14 ns, CL 2 to 100 MHz, CL 3 to 143) by its data sheet of 2015.
ULX3S_SDRAM = SdramChip(
    name="IS42S16160G",
    rows=8192,
    columns=512,
    banks=4,
    data_bits=16,
    cl2_mhz=100.0,
    cl3_mhz=133.0,
    t_rcd=21.0,
    t_rp=21.0,
    t_ras=44.0,
    t_rc=66.0,
    t_rrd=15.0,
    t_rfc=70.0,
    t_wr=20.0,
    t_refi=64e6 / 8192,
)

# 64 Mbit in the package of a GW2AR-18: 2048 rows of 256 words of 32 bits in four banks. The maker
# publishes no figures; LiteX drives it as M12L64322A (LiteDRAM's modules.py: tRP, tRCD 15, tWR 15,
# tRFC 55, tRAS 40, tRRD 10 ns, 4096 refreshes in 64 ms), others name it EM638325. Rounded up.
TANG_NANO_20K_SDRAM = SdramChip(
    name="GW2AR-18",
    rows=2048,
    columns=256,
    banks=4,
    data_bits=32,
    cl2_mhz=100.0,
    cl3_mhz=143.0,
    t_rcd=18.0,
    t_rp=18.0,
    t_ras=42.0,
    t_rc=60.0,
    t_rrd=12.0,
    t_rfc=60.0,
    t_wr=15.0,
    t_refi=64e6 / 4096,
)

"""Programs on a board: the same jobs as on the simulated machine, over the line.

    device = Device.open("/dev/ttyUSB0")
    (result,) = device.run_all([Job(program, writes=…, reads=…)])
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from systolith import registers
from systolith.boards.link import Link, Progress
from systolith.boards.serial_line import LinkError, SerialLine
from systolith.config import PRESETS, Config
from systolith.errors import UserError
from systolith.host_link import BAUD
from systolith.program import Program
from systolith.registers import BY_NAME, Error
from systolith.sim.jobs import Job, MachineResult, Window

_SETTLED = ("STATUS", "ERROR", "ERROR_PC", "BASE", "IRQ_ENABLE", "WATCHDOG", "MARK")
"""Registers that lie behind each other, read at once."""
_POLL_S = 0.0005
_LOOK_S = 0.5
"""Between looks at CYCLES."""


class Device:
    """A board that is connected, with a machine of the configuration ``config``.

    ``link``: to it. ``config``: None means the preset that its fingerprint names. Raises
    ``LinkError`` if the board has another machine, or none.
    """

    def __init__(self, link: Link, config: Config | None = None) -> None:
        self.link = link
        identity = link.identity
        if config is None:
            config = next((c for c in PRESETS.values() if c.hash == identity.config_hash), None)
            if config is None:
                raise LinkError(
                    f"The machine on the board is no preset (configuration "
                    f"{identity.config_hash:#010x}): give its file by --config"
                )
        if config.hash != identity.config_hash:
            raise LinkError(
                f"The board {identity.board} has a machine of another configuration "
                f"({identity.config_hash:#010x}, not {config.hash:#010x}): load its bitstream, or "
                "choose its configuration by --config"
            )
        self.config = config
        self.memory_bytes: int | None = identity.memory_bytes
        self.progress: Callable[[int, int], None] = lambda done, total: None
        """Told how many bytes of a program are on the board, and of how many."""
        self._base = 0
        self._loaded: tuple[int, bytes] | None = None
        """Where the image of the last program is, and the image."""

    @classmethod
    def open(cls, port: str, baud: int = BAUD, config: Config | None = None) -> "Device":
        """The board at a serial port, for instance /dev/ttyUSB0 or COM3."""
        return cls(Link(SerialLine(port, baud)), config)

    def close(self) -> None:
        self.link.close()

    # Registers and memory ------------------------------------------------------------------------

    def register(self, name: str) -> int:
        """The value of a register by its name in ``core/registers.py``."""
        item = BY_NAME[name]
        words = self.link.read_registers(item.offset, 2 if item.wide else 1)
        return sum(word << 32 * i for i, word in enumerate(words))

    def peek(self, address: int, size: int) -> bytes:
        """Bytes of the last job's program."""
        return self.link.read_memory(self._base + address, size)

    # Jobs ----------------------------------------------------------------------------------------

    def run_all(
        self,
        jobs: Sequence[Job],
        *,
        on_mark: Callable[[int], None] | None = None,
        window: Window | None = None,
    ) -> list[MachineResult]:
        """Executes jobs one after another; see ``sim.jobs``.

        The constants of a program that is on the board already are not sent again. What a program
        finds in its buffers is left from before: no compiled program reads them unwritten.
        ``settings`` and ``reset_after`` of a job are for simulations, and refused.
        """
        return [self._run(job, on_mark, window) for job in jobs]

    def _run(
        self, job: Job, on_mark: Callable[[int], None] | None, window: Window | None
    ) -> MachineResult:
        if job.settings or job.reset_after:
            raise ValueError("A board has no settings of a simulation")
        self._base = job.base
        if job.program is not None:
            self._load(job)
        elif self._loaded is None:
            raise ValueError("The first job must have a program")
        for address, data in job.writes:
            self._write(job.base + address, data)
        link = self.link
        link.write_register(BY_NAME["BASE"].offset, job.base)
        link.write_register(BY_NAME["WATCHDOG"].offset, job.watchdog)
        started = time.monotonic()
        link.write_register(BY_NAME["CONTROL"].offset, registers.CONTROL_START)
        values = self._wait(job, on_mark, window)
        seconds = time.monotonic() - started
        counters = self._counters()
        size = self._size
        memory = np.zeros(size, dtype=np.uint8)
        for address, count in [(0, size)] if job.reads is None else job.reads:
            memory[address : address + count] = np.frombuffer(
                link.read_memory(job.base + address, count), np.uint8
            )
        return MachineResult(
            done=bool(values["STATUS"] & registers.STATUS_DONE),
            error=Error(values["ERROR"]),
            error_pc=values["ERROR_PC"],
            memory=memory,
            counters=counters,
            registers=values,
            mark=values["MARK"],
            simulated=counters["CYCLES"],
            seconds=seconds,
        )

    def _load(self, job: Job) -> None:
        if isinstance(job.program, Program):
            job.program.check_config(self.config)
            image, size = job.program.image, job.program.memory_bytes
        else:
            assert job.program is not None
            image = np.ascontiguousarray(job.program, dtype=np.uint8).tobytes()
            size = len(image)
        there = self.memory_bytes
        if job.base + size > there:
            raise UserError(
                f"The program needs {size:,} bytes of memory, and the board has {there:,}: choose "
                "a shorter context, a smaller model, or a board with more"
            )
        self._size = size
        # What follows memory contents may have been written by the program: send them again.
        known = isinstance(job.program, Program) and self._loaded == (job.base, image)
        if not known:
            self._loaded = None
            self._write(job.base, image, lambda done: self.progress(done, len(image)))
            self._loaded = job.base, image

    def _write(self, address: int, data: bytes, progress: Progress | None = None) -> None:
        """Any bytes; those around them in the same words stay."""
        first, end = address & ~3, address + len(data)
        if first != address:
            data = self.link.read_memory(first, address - first) + data
        if end % 4:
            data += self.link.read_memory(end, -end % 4)
        self.link.write_memory(first, data, progress)

    def _wait(
        self, job: Job, on_mark: Callable[[int], None] | None, window: Window | None
    ) -> dict[str, int]:
        """Until the program has ended; marks are passed on in the meantime.

        The machine's own CYCLES tell when it takes too long: a simulated board is slower than it
        says, and a host that chooses tokens may think for as long as it likes.
        """
        looked = time.monotonic()
        mark = 0  # what a start sets it to
        while True:
            words = self.link.read_registers(BY_NAME[_SETTLED[0]].offset, len(_SETTLED))
            values = dict(zip(_SETTLED, words, strict=True))
            busy = values["STATUS"] & registers.STATUS_BUSY
            if values["MARK"] != mark:
                mark = values["MARK"]
                if on_mark is not None:
                    on_mark(mark)
                if window is not None and busy:
                    self._converse(window, mark)
            elif not busy:
                return values
            elif time.monotonic() - looked < _LOOK_S:
                time.sleep(_POLL_S)
            elif self.register("CYCLES") <= job.max_cycles:
                looked = time.monotonic()
            else:
                self.link.write_register(BY_NAME["CONTROL"].offset, registers.CONTROL_RESET)
                raise LinkError(
                    f"The program has not ended after {job.max_cycles:,} cycles, and was stopped"
                )

    def _converse(self, window: Window, mark: int) -> None:
        raw = self.peek(window.first + (mark >> 16) * window.size, window.size)
        for address, data in window.answer(mark, np.frombuffer(raw, np.uint8)):
            self._write(self._base + address, data)

    def _counters(self) -> dict[str, int]:
        first, last = registers.COUNTERS[0], registers.COUNTERS[-1]
        words = self.link.read_registers(first.offset, (last.offset - first.offset) // 4 + 2)
        return {
            counter.name: words[at] | words[at + 1] << 32
            for counter in registers.COUNTERS
            for at in [(counter.offset - first.offset) // 4]
        }



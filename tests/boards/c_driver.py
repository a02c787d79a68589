"""The C driver as Python sees it: compiled to a shared library, called by ctypes.

Register accesses, caches, marks and sleep are Python functions. An exception in one of them is
raised by the driver's function that called it.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-O2")

(OK, NO_DEVICE, WRONG_VERSION, WRONG_CONFIGURATION, BAD_ARGUMENT, BUSY, TIMEOUT, STOPPED,
 NOT_STARTED) = range(9)  # fmt: skip
DIFFERENT = 100

_READ = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_size_t)
_WRITE = ctypes.CFUNCTYPE(None, ctypes.c_size_t, ctypes.c_uint32)
_CACHE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
_MARK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32)
_SLEEP = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")


def compile_library(kit: Path, sources: Sequence[str], output: Path) -> None:
    """A shared library of files of a kit, with register accesses by `driver_harness.c`."""
    command = [
        compiler(), *FLAGS, "-shared", "-fPIC", "-DSYSTOLITH_CUSTOM_IO", f"-I{kit}",
        *(kit / name for name in sources), HERE / "driver_harness.c", "-o", output,
    ]  # fmt: skip
    subprocess.run(command, check=True)


class _Hooks(ctypes.Structure):
    _fields_ = [("context", ctypes.c_void_p), ("clean", _CACHE), ("invalidate", _CACHE),
                ("mark", _MARK), ("sleep", _SLEEP)]  # fmt: skip


class _Memory(ctypes.Structure):
    _fields_ = [("cpu", ctypes.c_void_p), ("bus", ctypes.c_uint32), ("bytes", ctypes.c_size_t)]


class _Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint32), ("pc", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [
        ("configuration", ctypes.c_uint32), ("image", ctypes.c_void_p),
        ("image_bytes", ctypes.c_uint32), ("memory_bytes", ctypes.c_uint32),
        ("symbols", ctypes.c_void_p), ("symbol_count", ctypes.c_size_t),
    ]  # fmt: skip


class Driver:
    """A device of the driver in `library`.

    read(address), write(address, value): registers. clean(offset, bytes), invalidate(offset,
    bytes): of ``cpu``, what the CPU sees of a program's memory; None: no such hook. marks: values
    that the driver reported. sleep: its hook. ``on_mark`` may be set.
    """

    REGISTERS = 0x4000

    def __init__(
        self,
        library: Path,
        read: Callable[[int], int],
        write: Callable[[int, int], None],
        *,
        memory_bytes: int = 1 << 15,
        clean: Callable[[int, int], None] | None = None,
        invalidate: Callable[[int, int], None] | None = None,
        sleep: Callable[[], None] | None = None,
    ) -> None:
        self.library = ctypes.CDLL(str(library))
        self.cpu: NDArray[np.uint8] = np.full(memory_bytes, 0xA5, np.uint8)
        self.marks: list[int] = []
        self.on_mark: Callable[[int], None] = lambda value: None
        self._failure: BaseException | None = None
        self._device = ctypes.create_string_buffer(256)
        self._kept: list[Any] = []  # what C points to
        self.library.systolith_counter.restype = ctypes.c_uint64
        self.library.systolith_get_error.restype = _Error
        self.library.systolith_finished.restype = ctypes.c_bool
        for name in ("systolith_status_text", "systolith_error_text"):
            getattr(self.library, name).restype = ctypes.c_char_p

        def mark(context: Any, value: int) -> None:
            self.marks.append(value)
            self.on_mark(value)

        def cached(function: Callable[[int, int], None] | None) -> Any:
            if function is None:
                return _CACHE()
            return _CACHE(self._guard(lambda _, at, n: function(at - self.cpu.ctypes.data, n)))

        self._io = _READ(self._guard(read)), _WRITE(self._guard(write))
        self._hooks = _Hooks(
            None, cached(clean), cached(invalidate), _MARK(self._guard(mark)),
            _SLEEP() if sleep is None else _SLEEP(self._guard(lambda _: sleep())),
        )  # fmt: skip
        self.library.harness_set_io(*self._io)

    def _guard(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """ctypes would print an exception and go on."""

        def guarded(*arguments: Any) -> Any:
            if self._failure is not None:
                return 0
            try:
                return function(*arguments)
            except BaseException as error:
                self._failure = error
                return 0

        return guarded

    def call(self, name: str, *arguments: Any) -> Any:
        """``systolith_<name>(device, ...)``."""
        result = getattr(self.library, f"systolith_{name}")(self._device, *arguments)
        return self.checked(result)

    def checked(self, result: Any) -> Any:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return result

    def open(self) -> int:
        return self.call("open", ctypes.c_size_t(self.REGISTERS), ctypes.byref(self._hooks))

    def memory(self, bus: int, size: int | None = None) -> _Memory:
        return _Memory(self.cpu.ctypes.data, bus, len(self.cpu) if size is None else size)

    def program(self, image: bytes, configuration: int, memory_bytes: int | None = None) -> Any:
        """A ``struct systolith_program`` without symbols."""
        buffer = ctypes.create_string_buffer(image, len(image))
        size = len(image) if memory_bytes is None else memory_bytes
        made = _Program(configuration, ctypes.addressof(buffer), len(image), size, None, 0)
        self._kept += [buffer, made]
        return ctypes.byref(made)

    def load(self, program: Any, bus: int, size: int | None = None) -> int:
        return self.call("load", program, self.memory(bus, size))

    def wait(self, max_cycles: int = 0) -> int:
        return self.call("wait", ctypes.c_uint64(max_cycles))

    def wait_interrupt(self, max_cycles: int = 0) -> int:
        return self.call("wait_interrupt", ctypes.c_uint64(max_cycles))

    def counter(self, offset: int) -> int:
        return self.call("counter", offset)

    def error(self) -> tuple[int, int]:
        found = self.call("get_error")
        return found.code, found.pc

    def read(self, offset: int, size: int) -> bytes | int:
        """The bytes, or the status if it is not OK."""
        buffer = ctypes.create_string_buffer(size)
        status = self.call("read", offset, buffer, ctypes.c_size_t(size))
        return buffer.raw if status == OK else status

    def write(self, offset: int, data: bytes) -> int:
        return self.call("write", offset, data, ctypes.c_size_t(len(data)))

    def run_example(self, bus: int, size: int | None = None) -> int:
        return self.checked(
            self.library.example_run(
                self._device, ctypes.c_size_t(self.REGISTERS), self.memory(bus, size),
                ctypes.byref(self._hooks),
            )
        )  # fmt: skip

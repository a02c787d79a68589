"""Octets to and from a serial port, with pyserial."""

from typing import Protocol

from systolith.errors import UserError
from systolith.host_link import BAUD


class LinkError(UserError):
    """The board cannot be talked to, or does not do what it is asked for."""


class Line(Protocol):
    """Octets both ways. ``read`` waits for at least one; nothing means that ``timeout`` seconds
    have passed."""

    def write(self, octets: bytes) -> None: ...
    def read(self, timeout: float) -> bytes: ...
    def close(self) -> None: ...


class SerialLine:
    """A port of the system, or what else pyserial opens by an address (``socket://…``).

    Raises ``LinkError`` where there is no such port, another program has it, or it goes away.
    """

    def __init__(self, port: str, baud: int = BAUD) -> None:
        try:
            import serial
        except ImportError:
            raise LinkError(
                "A board needs pyserial: pip install 'systolith[boards]', or pip install pyserial"
            ) from None
        self.port = port
        self._error = serial.SerialException
        try:
            self._serial = serial.serial_for_url(port, baud, timeout=0.1, do_not_open=True)
            if "://" not in port:
                self._serial.exclusive = True
            self._serial.open()
        except (OSError, ValueError) as error:  # SerialException is an OSError
            raise LinkError(_why(port, str(error))) from None

    def write(self, octets: bytes) -> None:
        try:
            self._serial.write(octets)
        except OSError as error:
            raise self._broken(error) from None

    def read(self, timeout: float) -> bytes:
        try:
            self._serial.timeout = timeout
            first = self._serial.read(1)
            return first + self._serial.read(self._serial.in_waiting) if first else b""
        except (OSError, TypeError) as error:  # TypeError: closed under a read, by pyserial
            raise self._broken(error) from None

    def close(self) -> None:
        self._serial.close()

    def _broken(self, error: Exception) -> LinkError:
        return LinkError(f"The line to the board at {self.port} broke: {error}; is it plugged in?")


def _why(port: str, text: str) -> str:
    from serial.tools import list_ports

    if "exclusively lock" in text or "busy" in text.lower():
        return f"The port {port} is in use by another program: close that first"
    if "Permission denied" in text or "Errno 13" in text:
        return f"You may not open the port {port}: join the group that owns it (often dialout)"
    known = ", ".join(sorted(item.device for item in list_ports.comports())) or "none"
    return f"Cannot open the port {port}: {text}; the ports of this computer: {known}"

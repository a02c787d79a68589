"""The hardware's counters, as far as the model knows what they count."""

from dataclasses import dataclass

from systolith.compiler.timing.units import Fields


@dataclass(slots=True)
class Counters:
    """Collected while the model runs; see `systolith.registers.COUNTERS` for what they mean."""

    array_rows: int = 0
    wait_weights: int = 0
    vector_busy: int = 0
    matmul_busy: int = 0
    first_matmul: int = -1
    last_matmul: int = -1
    last_sum: int = -1

    def multiply(self, fields: Fields, start: int, done: int, waited: int, written: int) -> None:
        """A matmul from ``start`` to ``done``, whose last sum is ``written`` in that cycle; the
        array ``waited`` for weights."""
        if self.first_matmul < 0:
            self.first_matmul = start
        self.matmul_busy += done - max(start, self.last_matmul)
        self.last_matmul, self.last_sum = done, written
        tiles = fields.get("k_tiles", 0) * fields.get("n_tiles", 0)
        planes = 2 if fields.get("wide", 0) else 1
        self.array_rows += tiles * planes * fields.get("rows", 0)
        self.wait_weights += waited

    def registers(
        self,
        *,
        cycles: int,
        instructions: int,
        fetch_bytes: int,
        load_bytes: int,
        write_bytes: int,
        wait_memory: int,
    ) -> dict[str, int]:
        """By the names of the hardware's registers."""
        span = self.last_sum - self.first_matmul + 1 if self.first_matmul >= 0 else 0
        return {
            "CYCLES": cycles,
            "ARRAY_ROWS": self.array_rows,
            "MATMUL_SPAN": span,
            "WAIT_WEIGHTS": self.wait_weights,
            "WAIT_MEMORY": wait_memory,
            "VECTOR_BUSY": self.vector_busy,
            "READ_BYTES": fetch_bytes + load_bytes,
            "WRITE_BYTES": write_bytes,
            "FETCH_BYTES": fetch_bytes,
            "INSTRUCTIONS": instructions,
            "MATMUL_BUSY": self.matmul_busy,
        }

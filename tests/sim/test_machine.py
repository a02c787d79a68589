"""What only the golden machine says about a program."""

import numpy as np
import pytest

from systolith import isa
from systolith.config import Config
from systolith.isa import Instruction
from systolith.sim.machine import GoldenMachine, MachineError


@pytest.mark.parametrize("field", ["weight", "w_stride_n", "w_stride_k"])
def test_tiles_start_where_the_banks_have_them(field):
    """With one weight port a tile may start anywhere, with more at multiples of D rows."""
    fields = {"rows": 1, "k_tiles": 2, "n_tiles": 2, field: 6}
    program = [Instruction("matmul", fields), Instruction("halt")]
    memory = np.frombuffer(isa.assemble(program), np.uint8).copy()
    GoldenMachine(Config(dim=4, lanes=2, bus_bytes=4), memory).run()
    machine = GoldenMachine(Config(dim=4, lanes=2, bus_bytes=4, weight_ports=2), memory)
    with pytest.raises(MachineError, match=r"starts at row 6, and with 2 weight ports"):
        machine.run()

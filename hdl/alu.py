"""The arithmetic of ``vector`` instructions: V lanes of scale, table, combine, saturate."""

from amaranth import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from systolith import isa
from systolith.config import Config
from systolith.hdl.combine import CombineLane
from systolith.hdl.function_table import FunctionTable
from systolith.hdl.layouts import PARAMETER, WritePort, row
from systolith.hdl.pipeline import Flow, delay
from systolith.hdl.requant import Requantize

OPERATION = data.StructLayout(
    {
        "requantize": 1,
        "scale": 1,
        "table": 2,
        "slot": 3,
        "combine": 2,
        "mult_a": 16,
        "mult_b": 16,
        "shift": 6,
        "wide": 1,
    }
)
"""What is done with a beat. ``requantize``: A is scaled, or is 32-bit and has to be saturated."""


def operands(lanes: int) -> data.StructLayout:
    """A beat of V lanes: source A, source B (``b2``: the sines of a rotation), parameters."""
    return data.StructLayout(
        {
            "a": data.ArrayLayout(signed(32), lanes),
            "b": data.ArrayLayout(signed(16), lanes),
            "b2": data.ArrayLayout(signed(16), lanes),
            "parameters": data.ArrayLayout(PARAMETER, lanes),
        }
    )


class Alu(wiring.Component):
    """``saturate(combine(table(scale(a)), b))`` on V lanes, one beat a cycle, bit-exact.

    Latency: ``Requantize.LATENCY`` if A is scaled or 32-bit, otherwise ``AS_IT_IS`` (1), plus
    ``FunctionTable.LATENCY`` if a table is used, plus ``CombineLane.LATENCY`` (or
    ``LATENCY_MULTIPLY``) if B is joined. Nothing waits: a beat may enter only if there is a place
    for its result. An enable would have to reach 4,000 registers at V = 4. Seven multipliers a
    lane.

    Members
    -------
    i : in, flow of ``operands(lanes)``
    table_write : write port of the function tables, never waits
    o : out, flow of V signed 16
        Sign-extended if the results are 8-bit.
    operation : in, ``OPERATION``
        Changes only while no beat is under way.
    """

    AS_IT_IS = 1

    def __init__(self, config: Config) -> None:
        self.config = config
        self.table = FunctionTable(config)
        super().__init__(
            {
                "i": In(Flow(operands(config.lanes))),
                "table_write": In(
                    WritePort(self.table.write.signature.address_bits, row(config), 1)
                ),
                "o": Out(Flow(data.ArrayLayout(signed(16), config.lanes))),
                "operation": In(OPERATION),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.table = self.table
        wiring.connect(m, wiring.flipped(self.table_write), self.table.write)

        m.submodules.pipeline = pipeline = Module()
        beat = self.i.payload
        others = Cat(beat.b, beat.b2)
        y, others, valid = self._scale(pipeline, others)
        y, others, valid = self._lookup(pipeline, y, others, valid)
        y, valid = self._combine(pipeline, y, others, valid)
        m.d.comb += self.o.valid.eq(valid)
        for lane, value in enumerate(y):
            fits = (value[7:] == 0) | value[7:].all()
            narrow = Mux(fits, value[:8], Cat((~value[15]).replicate(7), value[15])).as_signed()
            m.d.comb += self.o.payload[lane].eq(Mux(self.operation.wide, value, narrow))
        return m

    def _scale(self, m: Module, others: Value) -> tuple[list[Signal], Value, Value]:
        operation, beat = self.operation, self.i.payload
        used = operation.requantize
        # What comes out is chosen by registers: a beat is under way for a cycle at least.
        chosen = Signal(name="requantized")
        m.d.sync += chosen.eq(used)
        y = []
        for lane in range(self.config.lanes):
            m.submodules[f"scale_{lane}"] = unit = Requantize()
            parameter = beat.parameters[lane]
            # Without parameters this saturates to 16 bits.
            m.d.comb += [
                unit.x.eq(beat.a[lane]),
                unit.bias.eq(Mux(operation.scale, parameter.bias, 0)),
                unit.mult.eq(Mux(operation.scale, parameter.mult, 1)),
                unit.shift.eq(Mux(operation.scale, parameter.shift[:6], 0)),
            ]
            as_it_is = delay(m, beat.a[lane][:16].as_signed(), self.AS_IT_IS, f"a_{lane}")
            value = Signal(signed(16), name=f"scaled_{lane}")
            m.d.comb += value.eq(Mux(chosen, unit.result, as_it_is))
            y.append(value)
        latencies = (Requantize.LATENCY, self.AS_IT_IS)
        others, valid = self._beside(m, used, "scale", others, self.i.valid, latencies)
        return y, others, valid

    def _lookup(
        self, m: Module, y: list[Signal], others: Value, valid: Value
    ) -> tuple[list[Signal], Value, Value]:
        operation, table = self.operation, self.table
        used = Signal()
        m.d.sync += used.eq(operation.table != isa.TableMode.NONE)
        m.d.comb += [
            table.exact.eq(operation.table == isa.TableMode.EXACT),
            table.slot.eq(operation.slot),
        ]
        result = []
        for lane, x in enumerate(y):
            value = Signal(signed(16), name=f"looked_up_{lane}")
            m.d.comb += [
                table.x[lane].eq(x),
                value.eq(Mux(used, table.result[lane], x)),
            ]
            result.append(value)
        others, valid = self._beside(m, used, "table", others, valid, (table.LATENCY, 0))
        return result, others, valid

    def _combine(
        self, m: Module, y: list[Signal], others: Value, valid: Value
    ) -> tuple[list[Signal], Value]:
        operation, lanes = self.operation, self.config.lanes
        used, multiply = Signal(), Signal()
        m.d.sync += [
            used.eq(operation.combine != isa.Combine.NONE),
            multiply.eq(operation.combine == isa.Combine.MULTIPLY),
        ]
        b, b2 = (
            [others.word_select(side * lanes + lane, 16).as_signed() for lane in range(lanes)]
            for side in range(2)
        )
        result = []
        for lane in range(lanes):
            m.submodules[f"combine_{lane}"] = unit = CombineLane()
            value = Signal(signed(16), name=f"combined_{lane}")
            m.d.comb += [
                unit.y.eq(y[lane]),
                unit.partner.eq(y[lane ^ 1]),
                unit.b.eq(b[lane]),
                unit.b2.eq(b2[lane]),
                unit.mode.eq(operation.combine),
                unit.mult_a.eq(operation.mult_a),
                unit.mult_b.eq(operation.mult_b),
                unit.shift.eq(operation.shift),
                value.eq(Mux(used, unit.result, y[lane])),
            ]
            result.append(value)
        sooner = delay(m, valid & used, CombineLane.LATENCY, "valid_combine")
        later = delay(m, sooner & multiply, 1, "valid_multiply")
        return result, Mux(used, Mux(multiply, later, sooner), valid)

    def _beside(
        self,
        m: Module,
        used: Value,
        name: str,
        others: Value,
        valid: Value,
        latencies: tuple[int, int],
    ) -> tuple[Value, Value]:
        """What accompanies the lanes through a stage that may be passed by, and around it.

        A beat that passes by leaves nothing in the stage: the next instruction may use it.
        """
        ways = []
        for taken, way, latency in zip((used, ~used), ("in", "by"), latencies, strict=True):
            ways.append(
                (
                    delay(m, others, latency, f"others_{name}_{way}"),
                    delay(m, valid & taken, latency, f"valid_{name}_{way}"),
                )
            )
        (others_in, valid_in), (others_by, valid_by) = ways
        others_out = Signal(len(others), name=f"others_{name}")
        valid_out = Signal(name=f"valid_{name}")
        m.d.comb += [
            others_out.eq(Mux(used, others_in, others_by)),
            valid_out.eq(valid_in | valid_by),
        ]
        return others_out, valid_out

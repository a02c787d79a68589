"""Every constant of the timing model, in one table.

Each is the number of registers on a way through the hardware, read from the file named beside it
and confirmed by traces of the RTL (`tests/compiler/test_timing.py`). A change of the hardware that
moves a register is a change of one line here.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Cycles, unless said otherwise."""

    # hdl/supervisor.py, hdl/sequencer.py
    first_restart: int = 2
    """From the first busy cycle to the first restart of the fetch."""
    words: int = 8
    """An instruction arrives word by word; one of a unit is handed on while the next one's first
    word is taken, the sequencer's own take a cycle more."""
    branch: int = 1
    """From the execution of a taken branch to the restart of the fetch."""
    shift_bits: int = 4
    """A shift takes a cycle for as many bits, and one for each that is left."""
    drained: int = 2
    """From the last ``done`` to the execution of fence, mark, halt or argmax."""

    # hdl/instruction_fetch.py
    ahead: int = 16
    """Instructions that are fetched ahead."""
    burst: int = 4
    """Instructions in a burst, where ``max_burst`` allows."""
    request: int = 2
    """From the decision to ask to AR: the request's register and the arbiter's."""
    ask: int = 2
    """From a decision to ask, a beat that leaves the buffer or a hit to the next decision: how much
    is free is in a register."""
    word_asked: int = 1
    """From the execution of an ``ldr`` to the decision to ask."""
    word: int = 3
    """From a beat to its first word in the sequencer."""
    hit: int = 2
    """From a restart to the first word of an instruction that the buffer has kept."""
    loaded: int = 1
    """From the beat of an ``ldr`` to its execution."""

    # hdl/issue.py
    grant: int = 1
    """From an instruction's arrival in the queue, from the departure of the one before, or from
    the ``done`` that signals its semaphore, to its grant."""
    offer: int = 1
    """From the grant to the first cycle in which the unit can take it."""
    room: int = 1
    """From the departure of an instruction to the arrival of another one in a full queue."""
    under_way: int = 8
    """Instructions that a unit may have begun and not finished."""

    # hdl/load.py, hdl/axi.py
    load_prepare: int = 1
    """From the start of a load or store to its job in the burst splitter."""
    load_burst: int = 2
    """From the job to the first request: the splitter's register and the buffer's."""
    arbiter: int = 1
    """From a load's request to AR."""
    load_done: int = 2
    """From the last beat to ``done``."""

    # hdl/store.py
    store_data: int = 7
    """From the job to the first beat of W: buffer, address, read, register, FIFO, register of W."""
    store_read: int = 5
    """From the start of a store to its first read of a local memory."""
    store_burst: int = 2
    """From the acceptance of a burst to its first beat of W."""
    store_done: int = 1
    """From the last response to ``done``."""
    response: int = 2
    """From the last beat of W to its response, at least; else ``write_latency`` of the memory."""
    change_owner: int = 1
    """Vector unit and store share a read port of the activation memory and one of the accumulator,
    load and vector unit the write ports of activation and weight memory: a change of its owner."""

    # hdl/tile_walker.py, hdl/weight_loader.py, hdl/row_streamer.py, hdl/accumulator.py
    minimum_pass: int = 4
    """A pass of fewer rows takes as long."""
    minimum_pass_forwarded: int = 2
    """The same with more than one weight port."""
    first_tile: int = 1
    """From the start of a matmul to the transfer of its first tile to the weight loader."""
    update: int = 2
    """From an activation row's read to the update of the accumulator, beyond the 2 D of the
    array."""
    matmul_done: int = 1
    """From the last activation row to ``done``, beyond the 2 D of the array."""
    early: int = 3
    """From ``done`` to the last sum in the accumulator."""

    # hdl/vector.py and what is in it
    dependent: int = 1
    """From ``done`` to the beginning of an instruction that waited for it."""
    first_beat: int = 5
    """From the beginning of an instruction to its first beat, if that needs one read."""
    read_ahead: int = 9
    """Blocks that are read while the ALU still does something else."""
    vector_done: int = 2
    """From the last beat out of the ALU to ``done``."""
    writer: int = 2
    """From the ``done`` before to that of an instruction whose results wait, beyond its beats."""
    switch: int = 1
    """From the last result of one operation to the first beat of another, less one."""
    destinations: int = 4
    """Instructions that may wait for the writer."""
    vector_reads: int = 2
    """From start to the first read."""
    scale: int = 6
    """Latency of the requantizer, hdl/requant.py."""
    as_it_is: int = 1
    """Latency of what passes it by."""
    table: int = 4
    """hdl/function_table.py"""
    combine: int = 6
    """hdl/combine.py"""
    multiply: int = 1
    """What a multiplication takes beyond that."""
    argmax: int = 1
    """A comparison ends so much later than a write, beyond log2 V."""
    softmax: int = 34
    """From its beginning to ``done`` of R rows of n beats, beyond n (R + 2) and log2 V."""
    norm: int = 39
    """From its beginning to ``done`` of a row of n beats, beyond 2 n and log2 V."""
    norm_parameters: int = 25
    """From its last parameters to ``done``, where not all of them fit in the queue for them."""
    norm_ahead: int = 16
    """Places of that queue, in beats."""
    norm_row: int = 4
    """A row of a norm takes as many cycles at least, hdl/norm_deviation.py."""


PARAMETERS = Parameters()
"""Today's hardware."""

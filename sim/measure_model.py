"""Measurements of layers and whole models on the RTL, each beside the compiler's prediction."""

from collections.abc import Collection
from typing import Any

import numpy as np

from systolith.compiler.decoder import compile_decoder, set_prompt
from systolith.compiler.sequence import compile_sequence, outputs, set_inputs
from systolith.compiler.timing import predict
from systolith.config import Config
from systolith.forward import IntegerModel
from systolith.graph import Attention, Graph, Linear
from systolith.program import Program
from systolith.sim.generate import compare, counted_per_token, integer_text, machine_text
from systolith.sim.machine_tb import MachineSim, size_for
from systolith.sim.workloads import random_inputs
from systolith.sim.writer import Request

LATENCY = 40


def useful_cycles(graph: Graph, tokens: int, dim: int) -> float:
    """Cycles of a D × D array without a lane, row or cycle wasted, for a sequence of tokens.

    A product with 16-bit activations counts twice, since an array of bytes must do it twice. Every
    token meets every key.
    """
    work = 0
    for node in graph.nodes:
        match node:
            case Linear():
                x, out = graph.tensors[node.x], graph.tensors[node.out]
                work += tokens * x.channels * out.channels * (x.bits // 8)
            case Attention():
                pairs = node.heads * node.head_dim * tokens * tokens
                planes = graph.tensors[node.q].bits // 8 * (1 if node.k_low is None else 2)
                planes += node.probability_bits // 8 + (0 if node.v_low is None else 1)
                work += pairs * planes
    return work / dim**2


def measure_sequence(
    graph: Graph,
    config: Config,
    tokens: int,
    *,
    seed: int = 1,
    without: Collection[str] = (),
    **settings: int,
) -> dict[str, Any]:
    """Cycles of a whole sequence, from memory to memory, start to halt.

    ``without``: instructions that are left out; then the results mean nothing and are not compared.
    """
    settings = {"latency": LATENCY, **settings}
    program = compile_sequence(graph, config, tokens=tokens, without=without)
    memory = program.memory()
    indices, given = random_inputs(graph, tokens, np.random.default_rng(seed))
    set_inputs(program, memory, tokens, indices, given)
    machine = MachineSim(config, size_bytes=size_for(program.memory_bytes), **settings)
    result = machine.run(memory)
    exact = True
    if not without:
        expected = IntegerModel(graph).trace({**indices, **given})
        found = outputs(program, result.memory, tokens)
        exact = all(np.array_equal(found[name], expected[name]) for name in found)
    cycles = result.counters["CYCLES"]
    return {
        "tokens": tokens,
        "block": program.metadata["block"],
        "cycles": cycles,
        "predicted": predict(program, memory, latency=settings["latency"]).cycles,
        "useful": round(useful_cycles(graph, tokens, config.dim) / cycles, 4),
        "array_rows": result.counters["ARRAY_ROWS"],
        "vector_busy": result.counters["VECTOR_BUSY"],
        "read_bytes": result.counters["READ_BYTES"],
        "bit_exact": exact,
    }


def measure_attention(graph: Graph, config: Config, tokens: int, **options: int) -> dict[str, Any]:
    """A sequence with softmax, and the same products without it."""
    result = measure_sequence(graph, config, tokens, **options)
    bare = measure_sequence(graph, config, tokens, without=("softmax",), **options)
    return result | {
        "without_softmax": bare["cycles"],
        "softmax_costs": round(result["cycles"] / bare["cycles"] - 1, 5),
    }


def measure_decode(
    graph: Graph,
    config: Config,
    *,
    resident: bool = False,
    prompt: int = 4,
    tokens: tuple[int, int] = (4, 12),
    seed: int = 1,
    **settings: int,
) -> dict[str, Any]:
    """Cycles of a token: the difference of two texts of ``tokens`` new tokens, divided.

    ``bus``: bytes of weights and of cached keys and values over what the bus could have read in
    those cycles; ``array``: bytes of weights over what could have entered the array.
    """
    settings = {"latency": LATENCY, **settings}
    program = compile_decoder(graph, config, resident=resident)
    rng = np.random.default_rng(seed)
    words = rng.integers(0, graph.vocabulary, prompt).tolist()
    counted = counted_per_token(program, graph, words, tokens, "rtl", **settings)
    cycles, read = counted["CYCLES"], counted["READ_BYTES"]
    weights = sum(graph.constants[node.weight].size for node in graph.of_kind(Linear))
    cached = 0.0
    if program.metadata["caches"] == "in memory":
        position = prompt + (tokens[0] + tokens[1]) / 2 - 1
        cached = sum(
            position
            * node.kv_heads
            * node.head_dim
            * (2 + (node.k_low is not None) + (node.v_low is not None))
            for node in graph.of_kind(Attention)
        )
    loaded = cached + (0 if resident else weights)
    return {
        "weights": weights,
        "resident": resident,
        "caches": program.metadata["caches"],
        "cycles": round(cycles),
        "predicted": round(_predicted_token(program, words, tokens, settings["latency"])),
        "bus": round(loaded / (config.bus_bytes * cycles), 4),
        "array": round(weights / (config.dim * config.weight_ports * cycles), 4),
        "read_bytes": round(read),
        "bit_exact": True,
    }


def measure_text(
    graph: Graph, config: Config, tokens: int, *, prompt: int = 4, seed: int = 1, **settings: int
) -> dict[str, Any]:
    """Cycles of a text of ``tokens`` new tokens, start to halt, every logit compared."""
    settings = {"latency": LATENCY, **settings}
    program = compile_decoder(graph, config)
    words = np.random.default_rng(seed).integers(0, graph.vocabulary, prompt).tolist()
    request = Request(prompt=words, tokens=tokens)
    result = machine_text(program, request, "rtl", **settings)
    compare(result, integer_text(graph, request, context=program.metadata["context"]))
    memory = program.memory()
    set_prompt(program, memory, words, prompt + tokens)
    cycles = result.counters["CYCLES"]
    return {
        "tokens": result.new,
        "resident": program.metadata["resident"],
        "cycles": cycles,
        "cycles_per_token": round(cycles / result.new),
        "predicted": predict(program, memory, latency=settings["latency"]).cycles,
        "read_bytes": result.counters["READ_BYTES"],
        "cycles_per_second": round(result.simulated / result.seconds),
        "bit_exact": True,
    }


def _predicted_token(
    program: Program, prompt: list[int], tokens: tuple[int, int], latency: int
) -> float:
    """Predicted cycles of a token, by the same difference."""
    cycles = []
    for count in tokens:
        memory = program.memory()
        set_prompt(program, memory, prompt, len(prompt) + count)
        cycles.append(predict(program, memory, latency=latency).cycles)
    return (cycles[1] - cycles[0]) / (tokens[1] - tokens[0])

from dataclasses import replace

import numpy as np
import pytest
import torch

from systolith.compiler.allocate import DoesNotFit
from systolith.compiler.decoder import compile_decoder, compile_for, logits, set_prompt
from systolith.compiler.tensors import Unsupported
from systolith.config import PRESETS, Config
from systolith.forward import IntegerModel
from systolith.graph import Add, Attention, Concat, Embedding, Slice
from systolith.program import Program
from systolith.quant.llama import Llama, LlamaConfig
from systolith.quant.llama_network import llama_network
from systolith.quant.posttraining import quantize_network
from systolith.quant.recipe import Recipe
from systolith.sim import workloads
from systolith.sim.machine import GoldenMachine
from tests.graphs import encoder
from tests.interleaved import InterleavedMachine
from tests.quant.small import small_llama

TINY = Config(
    dim=4,
    lanes=2,
    bus_bytes=4,
    weight_rows=1024,
    activation_rows=2048,
    accumulator_rows=512,
    parameter_rows=64,
    max_length=32,
)


def random_graph(seed: int, *, heads=4, kv_heads=2, head_dim=8, hidden=20, layers=2, context=32,
                 keys=12, values=16):
    """The integer graph of a Llama with random weights."""
    torch.manual_seed(seed)
    model = Llama(
        LlamaConfig(
            dim=heads * head_dim,
            hidden_dim=hidden,
            n_layers=layers,
            n_heads=heads,
            n_kv_heads=kv_heads,
            vocab_size=37,
            max_seq_len=context,
            tied_embedding=True,
        )
    ).eval()
    rng = np.random.default_rng(seed)
    batches = [rng.integers(0, 37, context) for _ in range(2)]
    recipe = Recipe(keys=(("*", keys),), values=(("*", values),))
    return quantize_network(llama_network(model), batches, recipe, bos=1, eos=2).graph


def reference(graph, prompt, total):
    """Tokens and logits by the integer forward: (total,), (total - len(prompt), vocabulary)."""
    model, tokens = IntegerModel(graph), list(prompt)
    rows = [model.step(prompt)[-1]]
    while True:
        tokens.append(int(np.argmax(rows[-1])))
        if len(tokens) == total:
            return tokens, np.array(rows)
        rows.append(model.step(tokens[-1:])[-1])


def check(program: Program, graph, machine, memory, prompt, total):
    machine.run(200_000)
    tokens, rows = reference(graph, prompt, total)
    assert program.read(memory, "tokens")[:total].tolist() == tokens
    device = logits(program, memory)[len(prompt) - 1 : total - 1]
    wrong = np.argwhere(device != rows)
    assert not len(wrong), f"first wrong logit at (token, channel) {wrong[0]}"


@pytest.mark.parametrize("preset", ["tiny", "small", "bench"])
@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, keys, values",
    [
        (4, 2, 8, 12, 16),
        (4, 2, 8, 8, 8),
        (4, 4, 4, 12, 8),
        (2, 1, 16, 8, 16),
        (6, 3, 6, 12, 16),
        (3, 1, 12, 12, 16),
    ],
)
def test_golden_machine_equals_integer_forward(
    preset, heads, kv_heads, head_dim, keys, values, seed
):
    graph = random_graph(
        seed, heads=heads, kv_heads=kv_heads, head_dim=head_dim, keys=keys, values=values
    )
    config = TINY if preset == "tiny" else PRESETS[preset]
    program = compile_decoder(graph, config)
    rng = np.random.default_rng(seed)
    prompt, total = rng.integers(0, 37, 11).tolist(), 16
    memory = program.memory()
    set_prompt(program, memory, prompt, total)
    marks: list[int] = []
    check(program, graph, GoldenMachine(config, memory, marks.append), memory, prompt, total)
    tokens = program.read(memory, "tokens")[:total].tolist()
    assert marks == [n << 16 | tokens[n - 1] for n in range(len(prompt) + 1, total + 1)]


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_weights_of_four_bits_are_expanded(preset, seed):
    rng = np.random.default_rng(seed)
    network = llama_network(small_llama(seed, dim=40, hidden_dim=67))
    recipe = Recipe(weights=(("*", 4),), group=32, rounding="gptq")
    graph = quantize_network(network, [rng.integers(0, 40, 24)], recipe).graph
    assert set(graph.weight_formats().values()) == {"int4/32"}
    config = TINY if preset == "tiny" else PRESETS[preset]
    program = compile_decoder(graph, config)
    prompt, total = rng.integers(0, 40, 11).tolist(), 16
    memory = program.memory()
    set_prompt(program, memory, prompt, total)
    check(program, graph, GoldenMachine(config, memory), memory, prompt, total)


@pytest.mark.parametrize("resident, weight_rows", [(True, 2048), (None, 1024), (False, 512)])
@pytest.mark.parametrize("depth", [2, 8])
def test_semaphores_allow_no_wrong_order(resident, weight_rows, depth, seed):
    graph = random_graph(seed)
    # Small memories: every region is used again and again.
    config = Config(
        dim=8,
        lanes=4,
        bus_bytes=8,
        weight_rows=weight_rows,
        activation_rows=1024,
        accumulator_rows=256,
        parameter_rows=128 if resident else 32,
        table_slots=1,
        max_length=32,
    )
    program = compile_decoder(graph, config, resident=resident)
    staying = program.metadata["on_chip"]["weights that stay"]
    assert staying == {True: 1504, None: 832, False: 0}[resident]
    for trial in range(3):
        rng = np.random.default_rng((seed, trial))
        memory = program.memory()
        prompt, total = rng.integers(0, 37, 5).tolist(), 8
        set_prompt(program, memory, prompt, total)
        check(program, graph, InterleavedMachine(config, memory, rng, depth), memory, prompt, total)


def test_program_does_not_grow_with_the_context(seed):
    short, long = (random_graph(seed, context=n) for n in (16, 32))
    programs = [compile_decoder(graph, PRESETS["small"], tokens=4) for graph in (short, long)]
    assert programs[0].instructions == programs[1].instructions


def test_the_whole_context_can_be_used(seed):
    graph = random_graph(seed, context=16)
    program = compile_decoder(graph, TINY)
    memory = program.memory()
    prompt, total = [1, 2, 3], 17
    set_prompt(program, memory, prompt, total)
    check(program, graph, GoldenMachine(TINY, memory), memory, prompt, total)


def test_the_context_is_halved_until_the_program_fits(seed):
    """Into the memory there is, and into a weight memory that has no room for more keys."""
    graph = random_graph(seed)
    whole = compile_for(graph, TINY, None)
    assert whole.metadata["context"] == 32
    short = compile_for(graph, TINY, whole.memory_bytes - 1)
    assert short.metadata["context"] == 16 and short.memory_bytes < whole.memory_bytes
    with pytest.raises(DoesNotFit, match=r"needs .* with a context of 16, and there are 1,000:"):
        compile_for(graph, TINY, 1000)
    assert compile_for(graph, replace(TINY, weight_rows=256), None).metadata["context"] == 16
    with pytest.raises(DoesNotFit, match="weight memory has 120 rows for this, and 128 more"):
        compile_for(graph, replace(TINY, weight_rows=128), None)


def test_a_stop_token_ends_the_text(seed):
    graph = random_graph(seed)
    tokens, _ = reference(graph, [1, 2], 20)
    stop = tokens[6]
    program = compile_decoder(graph, TINY)
    memory = program.memory()
    set_prompt(program, memory, [1, 2], 20, stop)
    marks: list[int] = []
    GoldenMachine(TINY, memory, marks.append).run(100_000)
    assert marks[-1] == tokens.index(stop, 2) + 1 << 16 | stop


def test_saved_programs_are_the_same(tmp_path, seed):
    program = compile_decoder(random_graph(seed), TINY)
    program.save(tmp_path / "model.slp")
    assert Program.load(tmp_path / "model.slp") == program
    assert [p.name for p in tmp_path.iterdir()] == ["model.slp"]


def test_errors_say_what_is_wrong(seed):
    graph = random_graph(seed)
    with pytest.raises(
        DoesNotFit, match="A context of 64 tokens is not possible: the model has 32"
    ):
        compile_decoder(graph, TINY, context=64)
    small = Config(
        dim=8, lanes=4, activation_rows=64, weight_rows=256, accumulator_rows=64, max_length=32
    )
    with pytest.raises(DoesNotFit, match="choose a configuration with a larger one"):
        compile_decoder(graph, small)
    program = compile_decoder(graph, TINY)
    memory = program.memory()
    with pytest.raises(Unsupported, match="The prompt is empty"):
        set_prompt(program, memory, [], 4)
    with pytest.raises(DoesNotFit, match="The prompt has 33 tokens and the context 32"):
        set_prompt(program, memory, [1] * 33, 40)
    with pytest.raises(DoesNotFit, match="allows 4 to 33"):
        set_prompt(program, memory, [1] * 3, 34)


def test_graphs_without_programs_are_named(seed):
    with pytest.raises(Unsupported, match="this graph is none: compile it for whole sequences"):
        compile_decoder(encoder(seed), TINY)
    graph = workloads.llama(8, hidden=16, heads=2, kv_heads=2, ffn=16, layers=2, vocabulary=16)
    nodes = list(graph.nodes)
    index = next(i for i, node in reversed(list(enumerate(nodes))) if isinstance(node, Attention))
    nodes[index] = replace(nodes[index], heads=1, kv_heads=1, head_dim=16)
    with pytest.raises(Unsupported, match="different heads"):
        compile_decoder(replace(graph, nodes=tuple(nodes)), TINY)


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_learned_positions_and_moved_channels(preset, seed):
    """What GPT-2 has and a Llama lacks: positions from a table; channels that change places."""
    graph = random_graph(seed)
    rng = np.random.default_rng(seed)
    nodes, tensors = list(graph.nodes), dict(graph.tensors)
    channels = tensors["embedding"].channels
    for name, count in (("places", channels), ("x", channels), ("front", 5), ("back", channels - 5),
                        ("moved", channels)):  # fmt: skip
        tensors[name] = replace(tensors["embedding"], name=name, channels=count)
    rows = rng.integers(-3000, 3000, (graph.context, channels)).astype(np.int16)
    nodes[1:1] = [
        Embedding(name="places", out="places", table="places.table", index="positions"),
        Add(name="x", out="x", a="embedding", b="places", mult_a=1, mult_b=1, shift=0),
        Slice(name="front", out="front", x="x", first=0, count=5),
        Slice(name="back", out="back", x="x", first=5, count=channels - 5),
        Concat(name="moved", out="moved", xs=("back", "front")),
    ]
    for i in range(6, len(nodes)):
        fields = {f: "moved" for f in nodes[i].INPUTS if getattr(nodes[i], f) == "embedding"}
        nodes[i] = replace(nodes[i], **fields)
    graph = replace(graph, nodes=tuple(nodes), tensors=tensors,
                    constants=graph.constants | {"places.table": rows})  # fmt: skip
    config = TINY if preset == "tiny" else PRESETS[preset]
    program = compile_decoder(graph, config)
    prompt, total = rng.integers(0, 37, 7).tolist(), 14
    memory = program.memory()
    set_prompt(program, memory, prompt, total)
    check(program, graph, GoldenMachine(config, memory), memory, prompt, total)

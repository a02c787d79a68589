"""Commands that write text with a language model."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from systolith.cli_backend import Backend, backend_options
from systolith.cli_counters import CLOCK_MHZ, shares, show_table
from systolith.cli_load import language_model
from systolith.cli_options import check_output, config_option, steps
from systolith.config import load_config
from systolith.errors import UserError
from systolith.sampling import GREEDY, Sampler
from systolith.text import TextStream, ends_with

if TYPE_CHECKING:
    from systolith.graph import Graph
    from systolith.quant.vocabulary import AnyTokenizer
    from systolith.sim.generate import Generation
    from systolith.sim.writer import Request

DEMO_PROMPT = "If the expression"
DEMO_TOKENS = 48


@dataclass(frozen=True, kw_only=True)
class _Text:
    """A text to be written, as the user asks for it; ``end_tokens``: those of the model end it."""

    model: str
    tokenizer: str | None = None
    prompt: str = DEMO_PROMPT
    tokens: int = DEMO_TOKENS
    sampler: Sampler = GREEDY
    stops: Sequence[str] = ()
    end_tokens: bool = True

    def request(self, graph: "Graph", vocabulary: "AnyTokenizer") -> "Request":
        from systolith.sim.writer import Request

        prompt = vocabulary.encode(self.prompt)
        ends = {token for token in (graph.bos, graph.eos) if token is not None}
        return Request(
            prompt=prompt,
            tokens=self.tokens,
            sampler=self.sampler,
            stops=ends if self.end_tokens else (),
            ends=ends_with(vocabulary, prompt[-1], self.stops) if prompt else None,
        )


def _write_text(
    wanted: _Text,
    backend: Backend,
    waves: Path | None = None,
    trace: Path | None = None,
) -> None:
    """Loads, quantizes, compiles, writes text and reports; everything on the terminal."""
    step = steps()
    graph, vocabulary = language_model(wanted.model, wanted.tokenizer, step)
    request = wanted.request(graph, vocabulary)
    request.total(graph.context)
    from systolith.sim.generate import generate

    backend.announce(f"writing up to {request.tokens} tokens", step)
    stream = TextStream(vocabulary, request.prompt[-1])

    def show(text: str) -> None:
        click.echo(text, nl=False)
        sys.stdout.flush()

    show(wanted.prompt)
    made = generate(
        graph,
        backend.config,
        request,
        backend.executor,
        lambda token: show(stream.push(token)),
        waves,
        trace is not None,
    )
    click.echo(stream.close())
    if made.end == "context":
        length = len(made.tokens) - 1
        step(f"the context of {length} tokens is full: the text ends after {made.new} new ones")
    elif made.end == "stop":
        step(f"the text ends by itself or at --stop after {made.new} tokens")
    if backend.name == "golden":
        step(f"{made.new} tokens by the integer forward")
        return
    step(f"{made.new} tokens × {graph.vocabulary} logits equal the golden forward, every bit")
    if made.waves:
        step(f"waveform: {made.waves}")
    if trace is not None:
        from systolith.compiler.perfetto import write_trace

        write_trace(trace, made.timelines, made.labels, clock_mhz=backend.clock)
        step(f"trace: {trace}, for ui.perfetto.dev")
    if backend.has_counters:
        _report(made, backend)


def _write_batch(wanted: list[_Text], backend: Backend) -> None:
    """Several texts, decoded together, one behind the other on the terminal."""
    step = steps()
    graph, vocabulary = language_model(wanted[0].model, wanted[0].tokenizer, step)
    requests = [text.request(graph, vocabulary) for text in wanted]
    for request in requests:
        request.total(graph.context)
    from systolith.sim.batch import generate_batch

    backend.announce(f"writing {len(requests)} texts together", step)
    made = generate_batch(graph, backend.config, requests, backend.executor)
    for text, request, tokens in zip(wanted, requests, made.texts, strict=True):
        stream = TextStream(vocabulary, request.prompt[-1])
        new = "".join(stream.push(token) for token in tokens[len(request.prompt) :])
        click.echo(f"{text.prompt}{new}{stream.close()}\n")
    if backend.name == "golden":
        return
    step(f"the logits of {len(requests)} texts equal the golden forward, every bit")
    if backend.has_counters:
        cycles, count = made.counters["CYCLES"], made.steps * len(requests)
        show_table(
            [
                ("cycles", f"{cycles:,}"),
                ("cycles per token of each text (prompts included)", f"{cycles / count:,.0f}"),
                (
                    f"tokens/s at {backend.clock:g} MHz, all texts",
                    f"{count * backend.clock * 1e6 / cycles:,.0f}",
                ),
                *shares(made.counters, backend.config),
                *_speed(backend, made.simulated, made.seconds),
            ]
        )


def _speed(backend: Backend, cycles: int, seconds: float) -> list[tuple[str, str]]:
    """How fast a simulation was."""
    return [] if backend.board else [("simulation", f"{cycles / seconds:,.0f} cycles/s")]


def _report(result: "Generation", backend: Backend) -> None:
    """What the hardware counters say."""
    cycles = result.counters["CYCLES"]
    show_table(
        [
            ("cycles", f"{cycles:,}"),
            ("cycles per new token (prompt included)", f"{cycles / result.new:,.0f}"),
            (
                f"tokens/s at {backend.clock:g} MHz",
                f"{result.new * backend.clock * 1e6 / cycles:,.0f}",
            ),
            *shares(result.counters, backend.config),
            *_speed(backend, result.simulated, result.seconds),
        ]
    )


@click.command()
@click.option("--model", default="bundled", show_default=True, help="Checkpoint, or `bundled`.")
@click.option("--tokenizer", default=None, help="Vocabulary file, if not beside the checkpoint.")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    default=[DEMO_PROMPT],
    show_default=True,
    help="Given several times, the texts are decoded together, weights read once for all.",
)
@click.option("--tokens", default=DEMO_TOKENS, show_default=True, help="Tokens to write, at most.")
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    help="0: always the most likely token, else by chance, the wilder the higher.",
)
@click.option("--top-k", default=0, help="Chance only among so many of the most likely tokens.")
@click.option(
    "--top-p",
    default=1.0,
    help="Chance only among the most likely tokens that have this probability together.",
)
@click.option("--seed", default=0, show_default=True, help="Of chance.")
@click.option("--stop", "stops", multiple=True, help="Text to end behind; may be given again.")
@backend_options
@click.option("--waves", type=click.Path(path_type=Path), help="File for the waveform (rtl).")
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help="A .json file for ui.perfetto.dev: what each unit did when (rtl).",
)
def generate(
    model: str,
    tokenizer: str | None,
    prompts: tuple[str, ...],
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    stops: tuple[str, ...],
    backend: Backend,
    waves: Path | None,
    trace: Path | None,
) -> None:
    """Continue a text with a language model.

    The text ends after --tokens, where the context is full, or where the model or --stop ends it.
    """
    if waves is not None and backend.name != "rtl":
        raise UserError("A waveform needs the backend rtl: add --backend rtl")
    if trace is not None and backend.name != "rtl":
        raise UserError("A trace needs the backend rtl: add --backend rtl")
    check_output(trace, ".json")
    if "" in stops:
        raise UserError("A text to stop at must not be empty")
    wanted = _Text(
        model=model,
        tokenizer=tokenizer,
        prompt=prompts[0],
        tokens=tokens,
        sampler=Sampler(temperature, top_k, top_p, seed),
        stops=stops,
    )
    if len(prompts) == 1:
        _write_text(wanted, backend, waves, trace)
        return
    if not wanted.sampler.greedy or stops or waves is not None or trace is not None:
        raise UserError(
            "Several prompts take the most likely tokens, without --stop, --waves and --trace: "
            "leave these and --temperature out, or give one prompt"
        )
    _write_batch([replace(wanted, prompt=prompt) for prompt in prompts], backend)


@click.command()
@config_option("bench")
def demo(config_name: str) -> None:
    """The bundled language model writes on the RTL (`make sim`)."""
    backend = Backend("rtl", load_config(config_name), CLOCK_MHZ)
    _write_text(_Text(model="bundled", end_tokens=False), backend)

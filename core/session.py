"""A quantized model that runs on the integer forward, the golden machine or the RTL.

    session = systolith.Session(qmodel, backend="rtl")           # or a .slq file
    session(tokens, attention_mask)                              # as qmodel.as_torch() is called
    for text in session.generate("Once upon a time", 100, sampler=Sampler(0.8)):
        print(text, end="")

Everything heavy is imported when a session is made or used.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from systolith.artifact import Artifact
from systolith.config import Config, load_config
from systolith.errors import UserError
from systolith.program import Program
from systolith.sampling import GREEDY, Sampler
from systolith.text import TextStream, ends_with

if TYPE_CHECKING:
    from systolith.quant.posttraining import QuantizedModel
    from systolith.quant.vocabulary import AnyTokenizer
    from systolith.sim.execute import Inputs, SequenceRun
    from systolith.sim.generate import Generation
    from systolith.sim.jobs import Machine
    from systolith.sim.writer import Request

BACKENDS = ("golden", "machine", "rtl", "board")
Prompt = str | Sequence[int] | NDArray[np.integer]


class Session:
    """A model on one of the backends, which give the same bits.

    ``model``: a quantized model, a .slq file, or a checkpoint that `systolith quantize` takes, with
    its default recipe. ``config``: a `Config`, the name of a preset or a JSON file. ``backend``:
    "golden" (integer forward in numpy), "machine" (golden machine, executes the compiled program),
    "rtl" (Verilog under Verilator) or "board" (an FPGA at the serial port ``port``, by default with
    the configuration that it has); or a board that is open. ``check``: results are compared with
    the integer forward, and a difference raises ``Mismatch``.
    ``settings``: latency, bandwidth, … of the memory beside the RTL; ``baud`` of a board's port.

    Programs are compiled when they are needed first, for sequences of up to D · 2**n tokens, and
    kept. ``counters``: the machine's, summed over the sequences of the last call (rtl); after
    ``generate`` ``generation`` has all that is known of the last text.
    """

    def __init__(
        self,
        model: "QuantizedModel | Artifact | str | Path",
        config: Config | str | None = None,
        backend: "str | Machine" = "golden",
        *,
        check: bool = True,
        port: str | None = None,
        **settings: int,
    ) -> None:
        if isinstance(backend, str) and backend not in BACKENDS:
            raise UserError(f"The backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
        if (backend == "board") != (port is not None):
            raise UserError("A port goes with the backend board: give both or none of them")
        from systolith.forward import IntegerModel
        from systolith.quant.session_call import Caller

        if isinstance(model, str | Path):
            if Path(model).suffix == ".slq":
                model = Artifact.load(Path(model))
            else:
                from systolith.quant.kept import quantize_or_find

                model = quantize_or_find(model)
        self.graph, self._tokenizer = model.graph, model.tokenizer
        chosen = load_config(config) if isinstance(config, str) else config
        if port is not None:
            from systolith.boards.device import Device

            backend, settings = Device.open(port, config=chosen, **settings), {}
        if not isinstance(backend, str):
            chosen = backend.config
        self.config = chosen or load_config("bench")
        self.backend, self.check, self.memory_settings = backend, check, settings
        self.counters: dict[str, int] = {}
        self.generation: Generation | None = None
        self._caller = Caller(self.graph, getattr(model, "signature", None))
        self._forward = IntegerModel(self.graph)
        self._sequences: dict[int, Program] = {}
        self._decoder: Program | None = None

    def __call__(self, *values: Any, **named: Any) -> Any:
        """The model's outputs for a batch of whole sequences.

        Arguments and results are those of `QuantizedModel.as_torch`: torch tensors, or numpy arrays
        where all arguments are numpy arrays. A language model gives the logits of each token.
        """
        from systolith.sim.execute import Inputs

        batch = self._caller.read(values, named)
        indices = self.graph.indices
        inputs = [
            Inputs(
                length=length,
                indices={name: x.tolist() for name, x in sequence.items() if name in indices},
                given={name: x for name, x in sequence.items() if name not in indices},
            )
            for sequence, length in zip(batch.sequences, batch.lengths, strict=True)
        ]
        runs = self.run(inputs)
        return self._caller.results(batch, [run.outputs for run in runs])

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs."""
        return self._caller.module.inputs

    def run(self, inputs: "Sequence[Inputs]") -> "list[SequenceRun]":
        """The integers of every output for each sequence, in the order of ``inputs``."""
        from systolith.sim.execute import (
            SequenceRun,
            compare_outputs,
            integer_sequence,
            run_sequences,
        )

        self.counters = {}
        if self.backend == "golden":
            return [SequenceRun(integer_sequence(self._forward, x), {}, 0.0) for x in inputs]
        runs: dict[int, SequenceRun] = {}
        by_program: dict[int, list[int]] = {}
        for index, item in enumerate(inputs):
            by_program.setdefault(self._size(item.length), []).append(index)
        for size, members in by_program.items():
            made = run_sequences(
                self.sequence_program(size),
                [inputs[index] for index in members],
                self.backend,
                **self.memory_settings,
            )
            runs |= dict(zip(members, made, strict=True))
        for index, run in sorted(runs.items()):
            for name, count in run.counters.items():
                self.counters[name] = self.counters.get(name, 0) + count
            if self.check:
                reference = integer_sequence(self._forward, inputs[index])
                compare_outputs(run.outputs, reference, f"Sequence {index}, ")
        return [runs[index] for index in range(len(inputs))]

    def _size(self, length: int) -> int:
        """Tokens of the program for a sequence: few sizes, and none beyond the context."""
        size = self.config.dim
        while size < length:
            size *= 2
        return max(length, min(size, self.graph.context, self.config.max_length))

    def sequence_program(self, tokens: int) -> Program:
        """The program for sequences of up to ``tokens`` tokens."""
        from systolith.compiler.sequence import compile_sequence

        if tokens not in self._sequences:
            self._sequences[tokens] = compile_sequence(self.graph, self.config, tokens=tokens)
        return self._sequences[tokens]

    # Text ----------------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> "AnyTokenizer":
        """The model's; raises ``UserError`` where it has none."""
        from systolith.quant.vocabulary import tokenizer_from_bytes

        if not self._tokenizer:
            raise UserError("The model has no vocabulary: give tokens instead of text")
        return tokenizer_from_bytes(self._tokenizer, "the model", self.graph.vocabulary)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The vector of each text, (texts, channels), by a sentence model.

        A text is cut to the model's context. Raises ``UserError`` for other models.
        """
        vocabulary = self.vocabulary
        (output, *others), context = self.graph.outputs, self.graph.context
        if others or output.pool == "none":
            raise UserError("The model is no sentence model: it does not give one vector a text")
        sequences = [vocabulary.encode(text, limit=context) for text in texts]
        longest = max(map(len, sequences), default=0)
        tokens = np.zeros((len(sequences), longest), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        return self(tokens=tokens, attention_mask=mask)

    def generate(
        self,
        prompt: Any,
        tokens: int,
        *,
        sampler: Sampler = GREEDY,
        stop: Sequence[str | int] = (),
    ) -> Iterator[Any]:
        """Continues a prompt by up to ``tokens`` tokens; they come one by one, as they are written.

        A prompt of text gives pieces of text, one of tokens gives tokens; a list of prompts gives
        pairs: index of the prompt, piece. The prompts of a list are processed one after another,
        prompt i with the sampler's seed plus i. ``stop``: texts and tokens that end it, beside the
        tokens by which the model itself begins or ends a text. Ends where the context is full.
        """
        if not self.graph.generative:
            raise UserError("The model is no language model: it cannot continue a text")
        several = not isinstance(prompt, str) and any(
            isinstance(item, str) or np.ndim(item) > 0 for item in prompt
        )
        if not several:
            return self._write(_Asked(prompt, tokens, sampler, stop))
        return self._write_all(
            [
                _Asked(one, tokens, replace(sampler, seed=sampler.seed + index), stop)
                for index, one in enumerate(prompt)
            ]
        )

    def _write_all(self, asked: "list[_Asked]") -> Iterator[tuple[int, Any]]:
        for index, one in enumerate(asked):
            for piece in self._write(one):
                yield index, piece

    def _write(self, asked: "_Asked") -> Iterator[Any]:
        """Tokens or pieces of one text."""
        request = asked.request(self)
        request.total(self.graph.context)
        if not asked.is_text:
            yield from self._tokens(request)
            return
        stream = TextStream(self.vocabulary, request.prompt[-1])
        for token in self._tokens(request):
            yield stream.push(token)
        yield stream.close()

    def _tokens(self, request: "Request") -> Iterator[int]:
        """New tokens while another thread writes them; nobody listening any more ends it."""
        queue: SimpleQueue[int | BaseException | None] = SimpleQueue()
        abandoned = threading.Event()

        def tell(token: int) -> None:
            if abandoned.is_set():
                raise _Abandoned
            queue.put(token)

        def work() -> None:
            try:
                self.generation = self._generation(request, tell)
                queue.put(None)
            except BaseException as error:  # which belongs to who reads the tokens
                queue.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (item := queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            abandoned.set()
            thread.join()

    def _generation(self, request: "Request", tell: Callable[[int], None]) -> "Generation":
        from systolith.sim.generate import compare, integer_text, machine_text

        if self.backend == "golden":
            return integer_text(self.graph, request, tell)
        from systolith.compiler.decoder import compile_for

        if self._decoder is None:
            room = None if isinstance(self.backend, str) else self.backend.memory_bytes
            self._decoder = compile_for(self.graph, self.config, room)
        program = self._decoder
        made = machine_text(program, request, self.backend, tell, **self.memory_settings)
        self.counters = dict(made.counters)
        if self.check:
            compare(made, integer_text(self.graph, request, context=program.metadata["context"]))
        return made


class _Abandoned(Exception):
    """Nobody reads the text any more."""


@dataclass(frozen=True)
class _Asked:
    """The arguments of ``generate`` for one prompt."""

    prompt: Prompt
    tokens: int
    sampler: Sampler
    stop: Sequence[str | int]

    @property
    def is_text(self) -> bool:
        return isinstance(self.prompt, str)

    def request(self, session: Session) -> "Request":
        from systolith.sim.writer import Request

        prompt = (
            session.vocabulary.encode(self.prompt)
            if isinstance(self.prompt, str)
            else [int(token) for token in self.prompt]
        )
        texts = [item for item in self.stop if isinstance(item, str)]
        if "" in texts:
            raise UserError("A text to stop at must not be empty")
        graph = session.graph
        stops = {int(item) for item in self.stop if not isinstance(item, str)}
        stops |= {token for token in (graph.bos, graph.eos) if token is not None}
        ends = ends_with(session.vocabulary, prompt[-1], texts) if texts and prompt else None
        return Request(
            prompt=prompt, tokens=self.tokens, sampler=self.sampler, stops=stops, ends=ends
        )

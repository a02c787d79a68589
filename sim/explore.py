"""Searches configurations for a model: predicted cycles against what they take on an FPGA.

Optuna chooses (NSGA-II), the compiler makes the program, `compiler.timing` predicts its cycles and
`compiler.resources` estimates multipliers and block RAMs. Nothing is simulated.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from systolith.compiler.allocate import DoesNotFit
from systolith.compiler.decoder import compile_decoder, set_prompt
from systolith.compiler.resources import Resources, resources
from systolith.compiler.sequence import compile_sequence
from systolith.compiler.timing import predict
from systolith.config import Config, ConfigError
from systolith.errors import UserError
from systolith.graph import Graph

_PROMPT = 4
_ROWS = {
    "activation_rows": (10, 16),
    "weight_rows": (10, 16),
    "accumulator_rows": (8, 14),
    "parameter_rows": (5, 10),
}
"""Powers of two that are tried for the sizes of memories."""


@dataclass(frozen=True)
class Candidate:
    """A configuration: predicted cycles of a token (language models) or of a sequence."""

    config: Config
    cycles: float
    resources: Resources

    def costs(self) -> tuple[float, int, int]:
        return self.cycles, self.resources.dsp, self.resources.bram


@dataclass(frozen=True)
class Exploration:
    """``front``: what nothing else beats in cycles, multipliers and block RAMs, fastest first.

    ``tried``, ``failed``: configurations; why the latter are none, and how many each time.
    """

    front: list[Candidate]
    tried: int
    failed: dict[str, int]

    def save(self, path: Path) -> None:
        """Writes the front as JSON; ``config`` of an entry is what --config takes."""
        entries = [
            {"cycles": round(c.cycles), **asdict(c.resources), "config": asdict(c.config)}
            for c in self.front
        ]
        path.write_text(json.dumps({"front": entries}, indent=2) + "\n", encoding="utf-8")


def parse_budget(text: str) -> dict[str, int]:
    """From "dsp=156,bram=208"; either may be absent."""
    budget: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in ("dsp", "bram") or not value.isdecimal():
            raise UserError(f"A budget is dsp=NUMBER,bram=NUMBER, not {text!r}")
        budget[name] = int(value)
    return budget


def predicted_cycles(graph: Graph, config: Config, tokens: int) -> float:
    """Of one token behind a short prompt, or of a sequence of ``tokens``."""
    if not graph.generative:
        return predict(compile_sequence(graph, config, tokens=tokens)).cycles
    program = compile_decoder(graph, config)
    cycles = []
    for count in (2, 4):
        memory = program.memory()
        set_prompt(program, memory, [0] * _PROMPT, _PROMPT + count)
        cycles.append(predict(program, memory).cycles)
    return (cycles[1] - cycles[0]) / 2


def _evaluate(
    graph: Graph, values: Mapping[str, int], tokens: int, budget: Mapping[str, int]
) -> Candidate | str:
    """A candidate, or why there is none."""
    try:
        config = Config(**values)
        need = resources(config)
        for name, limit in budget.items():
            if getattr(need, name) > limit:
                return f"beyond {name}={limit}"
        return Candidate(config, predicted_cycles(graph, config, tokens), need)
    except (ConfigError, DoesNotFit) as error:
        kind = "no such machine" if isinstance(error, ConfigError) else "the model does not fit"
        return kind


def _suggest(
    trial: Any, bus_bytes: int, length: int, features: int, dsp: int | None
) -> dict[str, int]:
    """Parameters of a machine, with no array that alone takes ``dsp`` multipliers or more."""
    dims = [dim for dim in (4, 8, 16, 32) if dsp is None or dim * dim < dsp] or [4]
    dim = trial.suggest_categorical("dim", dims)
    values = {
        "dim": dim,
        "lanes": max(2, dim // trial.suggest_categorical("dim over lanes", [1, 2, 4, 8])),
        "weight_ports": trial.suggest_categorical("weight_ports", [1, 2, 4]),
        "table_slots": trial.suggest_categorical("table_slots", [2, 4, 8]),
        "instruction_rows": trial.suggest_categorical("instruction_rows", [0, 256, 512]),
    }
    for name, (low, high) in _ROWS.items():
        values[name] = 1 << trial.suggest_int(name, low, high)
    smallest = 2 * dim
    return values | {
        "bus_bytes": min(bus_bytes, dim),
        "max_length": max(smallest, 1 << (length - 1).bit_length()),
        "max_features": max(smallest, 1 << (features - 1).bit_length()),
    }


def explore(
    graph: Graph,
    *,
    budget: Mapping[str, int] | None = None,
    tokens: int = 64,
    trials: int = 64,
    jobs: int = 1,
    bus_bytes: int = 8,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Exploration:
    """Tries ``trials`` configurations in ``jobs`` processes; the same for the same seed and jobs.

    ``bus_bytes``: most bytes of the memory bus in a cycle; ``tokens``: of a sequence, or the
    longest context of a language model that the softmax unit must take. Raises ``UserError`` if
    nothing fits, or without Optuna.
    """
    try:
        import optuna
    except ImportError:
        raise UserError(
            "explore needs Optuna: pip install 'systolith[explore]', or pip install optuna"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=min(24, max(4, trials // 4)))
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    channels = max(tensor.channels for tensor in graph.tensors.values())
    found: list[Candidate] = []
    failed: dict[str, int] = {}
    limits = dict(budget or {})
    with ProcessPoolExecutor(jobs) as pool:
        for start in range(0, trials, jobs):
            asked = [study.ask() for _ in range(min(jobs, trials - start))]
            futures = [
                pool.submit(
                    _evaluate,
                    graph,
                    _suggest(trial, bus_bytes, tokens, channels, limits.get("dsp")),
                    tokens,
                    limits,
                )
                for trial in asked
            ]
            for trial, future in zip(asked, futures, strict=True):
                result = future.result()
                if isinstance(result, Candidate):
                    study.tell(trial, result.costs())
                    found.append(result)
                else:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    failed[result] = failed.get(result, 0) + 1
            progress(start + len(asked))
    if not found:
        reasons = ", ".join(f"{count} {reason}" for reason, count in failed.items())
        raise UserError(
            f"None of {trials} configurations serves this model ({reasons}): give a larger budget "
            "or more --trials"
        )
    return Exploration(pareto_front(found), trials, failed)


def pareto_front(found: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other one equals or beats in everything, fastest first."""

    def beaten(one: Candidate) -> bool:
        mine = one.costs()
        return any(
            other.costs() != mine and all(a <= b for a, b in zip(other.costs(), mine, strict=True))
            for other in found
        )

    unique = {candidate.costs(): candidate for candidate in found if not beaten(candidate)}
    return [unique[costs] for costs in sorted(unique)]

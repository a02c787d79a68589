"""Searches configurations for a model: predicted cycles against what they take on an FPGA.

Optuna chooses (NSGA-II), the compiler makes the program, `compiler.timing` predicts its cycles and
`compiler.resources` estimates multipliers and block RAMs. Nothing is simulated.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from systolith.compiler.allocate import DoesNotFit
from systolith.compiler.decoder import compile_decoder, set_prompt
from systolith.compiler.resources import Resources, resources
from systolith.compiler.sequence import compile_sequence
from systolith.compiler.tensors import Unsupported
from systolith.compiler.timing import predict
from systolith.config import Config, ConfigError
from systolith.errors import UserError
from systolith.graph import Graph, Norm

_PROMPT = 4
_TOKENS = 64
_LONGEST = 4096
"""The longest softmax row of any configuration."""
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

    def choose(self, number: int) -> Config:
        """The configuration of an entry of the front, from 1; raises ``UserError`` beyond it."""
        if not 1 <= number <= len(self.front):
            raise UserError(f"The front has the machines 1 to {len(self.front)}, and no {number}")
        return self.front[number - 1].config

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
        if name not in ("dsp", "bram") or name in budget or not value.isdecimal():
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


_graph: Graph | None = None
"""The model of a worker process, which gets it once."""


def _begin(graph: Graph) -> None:
    global _graph
    _graph = graph


def _evaluate(
    values: Mapping[str, int], tokens: int, budget: Mapping[str, int]
) -> Candidate | str:
    """In a worker process: a candidate, or why there is none."""
    assert _graph is not None
    try:
        config = Config(**values)
        need = resources(config)
        for name, limit in budget.items():
            if getattr(need, name) > limit:
                return f"beyond {name}={limit}"
        return Candidate(config, predicted_cycles(_graph, config, tokens), need)
    except ConfigError as error:
        return f"no such machine: {error}"
    except DoesNotFit:
        return "the model does not fit"
    except Unsupported as error:
        return f"not supported: {error}"


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
        "queue_depth": trial.suggest_categorical("queue_depth", [4, 8, 16]),
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
    tokens: int | None = None,
    trials: int = 64,
    jobs: int = 1,
    bus_bytes: int = 8,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Exploration:
    """Tries ``trials`` configurations in ``jobs`` processes; the same for the same seed and jobs.

    ``bus_bytes``: most bytes of the memory bus in a cycle; ``tokens``: of a sequence, or the
    longest context of a language model that the softmax unit must take (default: 64, or the
    model's if less). Raises ``UserError`` if nothing fits, or without Optuna.
    """
    try:
        import optuna
    except ImportError:
        raise UserError(
            "explore needs Optuna: pip install 'systolith[explore]', or pip install optuna"
        ) from None
    longest = min(graph.context, _LONGEST)
    length = min(longest, _TOKENS) if tokens is None else tokens
    if not 1 <= length <= longest:
        raise UserError(f"explore takes 1 to {longest} tokens for this model, not {length}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=min(24, max(4, trials // 4)))
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    # Norms alone have a longest row: logits may be far wider than any configuration allows.
    channels = max((graph.tensors[node.x].channels for node in graph.of_kind(Norm)), default=1)
    found: list[Candidate] = []
    failed: dict[str, int] = {}
    limits = dict(budget or {})
    beyond: list[dict[str, int]] = []
    with ProcessPoolExecutor(jobs, initializer=_begin, initargs=(graph,)) as pool:
        for start in range(0, trials, jobs):
            asked = [study.ask() for _ in range(min(jobs, trials - start))]
            machines = [
                _suggest(trial, bus_bytes, length, channels, limits.get("dsp")) for trial in asked
            ]
            futures = [pool.submit(_evaluate, values, length, limits) for values in machines]
            for trial, values, future in zip(asked, machines, futures, strict=True):
                result = future.result()
                if isinstance(result, Candidate):
                    study.tell(trial, result.costs())
                    found.append(result)
                else:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    failed[result] = failed.get(result, 0) + 1
                    if result.startswith("beyond "):
                        beyond.append(values)
            progress(start + len(asked))
        if not found:
            evaluate = partial(_evaluate, tokens=length, budget={})
            smallest = _smallest(beyond, limits, lambda v: pool.submit(evaluate, v).result())
            raise UserError(_nothing(trials, failed, smallest))
    return Exploration(pareto_front(found), trials, failed)


def _smallest(
    beyond: Sequence[Mapping[str, int]],
    budget: Mapping[str, int],
    evaluate: Callable[[Mapping[str, int]], Candidate | str],
) -> Candidate | None:
    """Of machines beyond the budget, the one nearest to it that the model fits."""

    def excess(values: Mapping[str, int]) -> tuple[float, int, int]:
        need = resources(Config(**values))
        share = max(getattr(need, name) / max(limit, 1) for name, limit in budget.items())
        return share, need.dsp, need.bram

    for values in sorted(beyond, key=excess):
        result = evaluate(values)
        if isinstance(result, Candidate):
            return result
    return None


def _nothing(trials: int, failed: Mapping[str, int], smallest: Candidate | None) -> str:
    """The sentence for a search without a result."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in failed.items())
    text = f"None of {trials} configurations serves this model ({reasons})"
    if smallest is None:
        return f"{text}: give a larger budget or more --trials"
    need = smallest.resources
    return (
        f"{text}: the smallest that was found needs dsp={need.dsp},bram={need.bram}, so give a "
        "larger budget or more --trials"
    )


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

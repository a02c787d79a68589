"""The integer forward: executes a graph with the golden functions alone, whole blocks at a time.

It is one of the descriptions that agree to the last bit, and the fastest: a block of a few hundred
tokens is a few large matrix products.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from systolith import golden
from systolith.errors import UserError
from systolith.fixed import Int, saturate
from systolith.graph import (
    POSITIONS,
    TOKENS,
    Add,
    ArgMax,
    Attention,
    Concat,
    Embedding,
    Given,
    Graph,
    Linear,
    Lookup,
    Multiply,
    Node,
    Norm,
    Output,
    Rope,
    Slice,
    int8_weight,
)


class ForwardError(UserError):
    """Inputs that a graph cannot process."""


def real_output(x: Int, scale: ArrayLike, output: Output) -> NDArray[np.float64]:
    """What the host makes of an output's integers (T, channels) of a ``scale``."""
    y = x * np.array(scale)
    match output.pool:
        case "first":
            y = y[0]
        case "last":
            y = y[-1]
        case "mean":
            y = y.mean(axis=0)
    if output.normalize:
        y = y / np.maximum(np.linalg.norm(y, axis=-1, keepdims=True), 1e-12)
    return y


class IntegerModel:
    """A graph and the state of one sequence: its key and value caches and its length.

    Results do not depend on how a sequence is cut into blocks: a prompt in one block, or token by
    token, gives the same bits. A graph that is not causal takes a sequence in one block.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.weights = {node.name: int8_weight(graph, node) for node in graph.of_kind(Linear)}
        """int8 [N, K] of every linear node: weights of four bits are expanded once."""
        self.caches: dict[str, NDArray[np.int8]] = {}
        for node in graph.of_kind(Attention):
            for name in (node.k, node.v, node.k_low, node.v_low):
                if name is not None:
                    shape = (graph.context, node.kv_heads * node.head_dim)
                    self.caches[f"{node.name}.{name}"] = np.zeros(shape, np.int8)
        self.start = 0
        """Tokens that the caches hold."""

    def reset(self) -> None:
        """Begins a new sequence."""
        self.start = 0

    def step(self, tokens: Iterable[int]) -> Int:
        """Processes the next T tokens of the sequence; returns int16 logits (T, vocabulary).

        Row t predicts the token after token t. Raises ``ForwardError`` for tokens that are not of
        the vocabulary, or more than the context holds.
        """
        return self.trace(tokens)[self.graph.logits]

    def run(self, inputs: Mapping[str, ArrayLike] | Iterable[int]) -> list[NDArray[np.float64]]:
        """The real values of every output for one whole sequence; see `trace` for the inputs."""
        self.reset()
        values = self.trace(inputs)
        return [self.real(values[output.tensor], output) for output in self.graph.outputs]

    def real(self, x: Int, output: Output) -> NDArray[np.float64]:
        """What the host makes of an output's integers (T, channels)."""
        return real_output(x, self.graph.tensors[output.tensor].scale, output)

    def trace(self, inputs: Mapping[str, ArrayLike] | Iterable[int]) -> dict[str, Int]:
        """Processes the next T tokens; returns every tensor of the graph by name, (T, channels).

        ``inputs``: T integers for each index input of the graph, (T, channels) integers for each
        `Given` tensor; or the tokens alone.
        """
        graph = self.graph
        if not isinstance(inputs, Mapping):
            inputs = {TOKENS: list(inputs)}
        block = self._checked(inputs)
        length = len(next(iter(block.values())))
        if not graph.causal:
            self.reset()
        if self.start + length > graph.context:
            raise ForwardError(
                f"The model's context is {graph.context} tokens, and {self.start + length} "
                f"do not fit; shorten the prompt or generate less"
            )
        values: dict[str, Int] = {}
        for node in graph.nodes:
            values[node.out] = self._execute(node, values, block, length)
        self.start += length
        return values

    def _checked(self, inputs: Mapping[str, ArrayLike]) -> dict[str, Int]:
        """The inputs as arrays that the graph can process."""
        graph, block = self.graph, {}
        given = [node.out for node in graph.of_kind(Given)]
        for name in (*graph.indices, *given):
            if name not in inputs:
                raise ForwardError(f"The input {name!r} is missing")
            x = block[name] = np.asarray(inputs[name], dtype=np.int64)
            if not len(x):
                raise ForwardError("A block must have at least one token")
            if name in given:
                half = 1 << (graph.tensors[name].bits - 1)
                low, high, shape = -half, half - 1, (len(x), graph.tensors[name].channels)
            else:
                low, high, shape = 0, graph.indices[name] - 1, (len(x),)
            if x.shape != shape:
                raise ForwardError(
                    f"The input {name!r} must have the shape {list(shape)}, not {list(x.shape)}"
                )
            if x.min() < low or x.max() > high:
                wrong = x[(x < low) | (x > high)][0]
                what = "Tokens" if name == TOKENS else f"Values of {name!r}"
                raise ForwardError(f"{what} must be {low} to {high}, not {wrong}")
        if len({len(x) for x in block.values()}) != 1:
            raise ForwardError("The inputs must have the same number of tokens")
        return block

    def logits(self, tokens: Iterable[int]) -> np.ndarray:
        """Real-valued logits of a whole sequence from an empty cache, (T, vocabulary)."""
        self.reset()
        return self.real(self.step(tokens), self.graph.outputs[0])

    def generate(self, prompt: Iterable[int], count: int) -> list[int]:
        """Continues the sequence by ``prompt`` and then by up to ``count`` tokens, the most likely.

        Returns the new tokens. It ends early where the context is full, and after a token that
        begins or ends a text, which is the last one returned.
        """
        new: list[int] = []
        logits = self.step(prompt)
        while len(new) < count:
            new.append(int(golden.argmax(logits[-1])))
            full = self.start == self.graph.context
            if len(new) == count or full or new[-1] in (self.graph.bos, self.graph.eos):
                break
            logits = self.step(new[-1:])
        return new

    def _execute(
        self, node: Node, values: dict[str, Int], block: dict[str, Int], length: int
    ) -> Int:
        const = self.graph.constants
        inputs = [values[name] for name in node.inputs]
        bits = self.graph.tensors[node.out].bits
        match node:
            case Given():
                return block[node.out]
            case Embedding():
                rows = np.arange(self.start, self.start + length)
                index = rows if node.index == POSITIONS else block[node.index]
                return const[node.table][index].astype(np.int64)
            case Linear():
                acc = golden.matmul(inputs[0], self.weights[node.name].T)
                y = golden.scale(acc, const[node.bias], const[node.mult], const[node.shift])
                if node.table is not None:
                    y = golden.lookup(y, const[node.table])
                return saturate(y, bits)
            case Norm():
                return golden.norm(
                    inputs[0],
                    const[node.gain],
                    const[node.bias],
                    const[node.shift],
                    node.eps << node.eps_shift,
                    center=node.center,
                    bits=bits,
                )
            case Rope():
                rows = slice(self.start, self.start + length)
                heads = inputs[0].shape[1] // node.head_dim
                cos, sin = (np.tile(const[c][rows], heads) for c in (node.cos, node.sin))
                return golden.rope(inputs[0], cos, sin, node.shift, bits)
            case Attention():
                return saturate(self._attention(node, values), bits)
            case Add():
                return golden.add(inputs[0], inputs[1], node.mult_a, node.mult_b, node.shift, bits)
            case Multiply():
                return golden.multiply(inputs[0], inputs[1], node.mult, node.shift, bits)
            case Lookup():
                lookup = golden.lookup8 if node.exact else golden.lookup
                return saturate(lookup(inputs[0], const[node.table]), bits)
            case Slice():
                return inputs[0][:, node.first : node.first + node.count]
            case Concat():
                return np.concatenate(inputs, axis=1)
            case ArgMax():
                return golden.argmax(inputs[0])[:, None]
        raise TypeError(f"No execution of {type(node).__name__}")

    def _attention(self, node: Attention, tensors: dict[str, Int]) -> Int:
        q = tensors[node.q]
        start, stop = self.start, self.start + len(q)

        def cached(name: str) -> NDArray[np.int8]:
            cache = self.caches[f"{node.name}.{name}"]
            cache[start:stop] = tensors[name]
            return cache[:stop]

        pairs, values = [(q, cached(node.k))], cached(node.v)
        if node.k_low is not None:
            pairs.append((tensors[node.q_low], cached(node.k_low)))
        values_low = None if node.v_low is None else cached(node.v_low)
        limit = np.arange(start, stop) + 1 if node.causal else stop
        out = np.empty_like(q)
        for head in range(node.heads):
            mine = slice(head * node.head_dim, (head + 1) * node.head_dim)
            group = head // node.group
            shared = slice(group * node.head_dim, (group + 1) * node.head_dim)
            scores: ArrayLike = 0
            for a, b in pairs:
                scores = golden.matmul(a[:, mine], b[:, shared].T, scores)
            p = golden.softmax(
                scores, node.score_mult, node.score_shift, limit, node.probability_bits
            )
            acc = golden.matmul(p, values[:, shared])
            if values_low is not None:
                acc = golden.matmul(p >> 8, values_low[:, shared], acc)
            parameters = (self.graph.constants[c][mine] for c in (node.bias, node.mult, node.shift))
            out[:, mine] = golden.scale(acc, *parameters)
        return out

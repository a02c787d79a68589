"""The integer forward: executes a graph with the golden functions alone, whole blocks at a time.

It is one of the descriptions that agree to the last bit, and the fastest: a block of a few hundred
tokens is a few large matrix products.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from systolith import golden
from systolith.errors import UserError
from systolith.fixed import Int, saturate
from systolith.graph import (
    Add,
    ArgMax,
    Attention,
    Embedding,
    Graph,
    Linear,
    Lookup,
    Multiply,
    Node,
    Norm,
    Rope,
)


class ForwardError(UserError):
    """Tokens that a graph cannot process."""


class IntegerModel:
    """A graph and the state of one sequence: its key and value caches and its length.

    Results do not depend on how a sequence is cut into blocks: a prompt in one block, or token by
    token, gives the same bits.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.caches: dict[str, tuple[NDArray[np.int8], NDArray[np.int8]]] = {}
        for node in graph.of_kind(Attention):
            shape = (graph.context, node.kv_heads * node.head_dim)
            self.caches[node.name] = np.zeros(shape, np.int8), np.zeros(shape, np.int8)
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

    def trace(self, tokens: Iterable[int]) -> dict[str, Int]:
        """Like ``step``, but returns every tensor of the graph by name, each (T, channels)."""
        block = np.array(list(tokens), dtype=np.int64)
        graph = self.graph
        if not len(block):
            raise ForwardError("A block must have at least one token")
        if block.min() < 0 or block.max() >= graph.vocabulary:
            wrong = block[(block < 0) | (block >= graph.vocabulary)][0]
            raise ForwardError(f"Tokens must be 0 to {graph.vocabulary - 1}, not {wrong}")
        if self.start + len(block) > graph.context:
            raise ForwardError(
                f"The model's context is {graph.context} tokens, and {self.start + len(block)} "
                f"do not fit; shorten the prompt or generate less"
            )
        values: dict[str, Int] = {}
        for node in graph.nodes:
            values[node.out] = self._execute(node, values, block)
        self.start += len(block)
        return values

    def logits(self, tokens: Iterable[int]) -> np.ndarray:
        """Real-valued logits of a whole sequence from an empty cache, (T, vocabulary)."""
        self.reset()
        return self.step(tokens) * np.array(self.graph.tensors[self.graph.logits].scale)

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

    def _execute(self, node: Node, values: dict[str, Int], block: Int) -> Int:
        const = self.graph.constants
        inputs = [values[name] for name in node.inputs]
        bits = self.graph.tensors[node.out].bits
        match node:
            case Embedding():
                return const[node.table][block].astype(np.int64)
            case Linear():
                acc = golden.matmul(inputs[0], const[node.weight].T)
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
                rows = slice(self.start, self.start + len(block))
                heads = inputs[0].shape[1] // node.head_dim
                cos, sin = (np.tile(const[c][rows], heads) for c in (node.cos, node.sin))
                return golden.rope(inputs[0], cos, sin, node.shift, bits)
            case Attention():
                return saturate(self._attention(node, *inputs), bits)
            case Add():
                return golden.add(inputs[0], inputs[1], node.mult_a, node.mult_b, node.shift, bits)
            case Multiply():
                return golden.multiply(inputs[0], inputs[1], node.mult, node.shift, bits)
            case Lookup():
                lookup = golden.lookup8 if node.exact else golden.lookup
                return saturate(lookup(inputs[0], const[node.table]), bits)
            case ArgMax():
                return golden.argmax(inputs[0])[:, None]
        raise TypeError(f"No execution of {type(node).__name__}")

    def _attention(self, node: Attention, q: Int, k: Int, v: Int) -> Int:
        start, stop = self.start, self.start + len(q)
        keys, values = self.caches[node.name]
        keys[start:stop], values[start:stop] = k, v
        limit = np.arange(start, stop) + 1
        out = np.empty_like(q)
        for head in range(node.heads):
            mine = slice(head * node.head_dim, (head + 1) * node.head_dim)
            group = head // node.group
            shared = slice(group * node.head_dim, (group + 1) * node.head_dim)
            scores = golden.matmul(q[:, mine], keys[:stop, shared].T)
            p = golden.softmax(
                scores, node.score_mult, node.score_shift, limit, node.probability_bits
            )
            acc = golden.matmul(p, values[:stop, shared])
            parameters = (self.graph.constants[c][mine] for c in (node.bias, node.mult, node.shift))
            out[:, mine] = golden.scale(acc, *parameters)
        return out

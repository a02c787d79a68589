"""`sq.quantize` of the modules that users are promised, from torch to a file and back."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import systolith.quant as sq
from systolith.artifact import Artifact
from systolith.forward import IntegerModel
from systolith.graph import Given, Graph
from systolith.quant.capture import CaptureError
from systolith.quant.network import Attention
from tests.quant.foreign import VOCABULARY, randomized

C, T = 16, 12
MANY = 24
"""Sequences to calibrate on: with a few dozen tokens, keys saturate on other inputs."""
Batch = dict[str, Any]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.double(), b.double(), dim=-1).mean())


def tensors(result: Any) -> list[Tensor]:
    """Results of a module or of Hugging Face's, flat."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, dict):
        return [t for t in result.values() if isinstance(t, Tensor)]
    return list(result)


def integers(graph: Graph, inputs: dict[str, Tensor]) -> list[np.ndarray]:
    """The golden machine's outputs for one sequence; ``inputs`` [T] or [T, C]."""
    given = {node.out: graph.tensors[node.out] for node in graph.of_kind(Given)}
    block = {}
    for name, x in inputs.items():
        block[name] = x.numpy()
        if name in given:
            half = 1 << (given[name].bits - 1)
            scaled = np.rint(x.double().numpy() / np.array(given[name].scale))
            block[name] = scaled.clip(-half, half - 1).astype(np.int64)
    return IntegerModel(graph).run(block)


def check(module: nn.Module, batches: list[Any], other: Batch, path: Path, *, least: float = 0.995,
          recipe: sq.Recipe | None = None) -> sq.QuantizedModel:
    """Near the module, the bits of the machine, and the same graph from a file."""
    module = module.eval().requires_grad_(False)
    made = sq.quantize(module, batches, recipe)
    ours, theirs = tensors(made.as_torch()(**other)), tensors(module(**other))
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert cosine(a, b) > least
        assert (a - b).abs().max() < 0.1 * b.abs().max()
    inputs, lengths = made.signature.read((), other)
    assert lengths is None
    for row in range(2):
        golden = integers(made.graph, {name: x[row] for name, x in inputs.items()})
        for a, b in zip(ours, golden, strict=True):
            np.testing.assert_allclose(a[row].numpy(), b, rtol=1e-12, atol=1e-12)
            if not any(o.pool == "mean" or o.normalize for o in made.graph.outputs):
                assert np.array_equal(a[row].numpy(), b)
    made.save(path / "model.slq")
    loaded = Artifact.load(path / "model.slq").graph
    assert (loaded.nodes, loaded.tensors, loaded.outputs, loaded.context) == (
        made.graph.nodes, made.graph.tensors, made.graph.outputs, made.graph.context)
    assert loaded.constants.keys() == made.graph.constants.keys()
    assert all(np.array_equal(loaded.constants[n], c) for n, c in made.graph.constants.items())
    return made


def check_padding(made: sq.QuantizedModel, padded: Batch, mask: str, lengths: list[int]) -> None:
    """Each sequence of a padded batch gives the bits that it gives alone."""
    together = tensors(made.as_torch()(**padded))
    for row, length in enumerate(lengths):
        alone = {n: x[row:row + 1, :length] for n, x in padded.items() if n != mask}
        for a, b in zip(together, tensors(made.as_torch()(**alone)), strict=True):
            a = a[row:row + 1] if a.dim() == 2 else a[row:row + 1, :length]
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def inside(lengths: list[int]) -> Tensor:
    return torch.arange(T) < torch.tensor(lengths)[:, None]


def floats(seed: int, count: int = 4) -> Tensor:
    return torch.randn(count, T, C, generator=torch.Generator().manual_seed(seed))


def ids(seed: int, count: int = 4) -> Tensor:
    return torch.randint(1, VOCABULARY, (count, T), generator=torch.Generator().manual_seed(seed))


# torch's own modules

@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu", F.silu])
def test_transformer_encoder(tmp_path: Path, norm_first: bool, activation: Any) -> None:
    layer = nn.TransformerEncoderLayer(C, 2, 24, batch_first=True, norm_first=norm_first,
                                       activation=activation)
    module = randomized(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 1)
    made = check(module, [floats(2, MANY), (floats(3),)], {"src": floats(4)}, tmp_path)
    lengths = [T, 5, 1]
    padded = {"src": floats(5, 3), "src_key_padding_mask": ~inside(lengths)}
    check_padding(made, padded, "src_key_padding_mask", lengths)
    shown = inside(lengths)
    assert cosine(made.as_torch()(**padded)[shown], module(**padded)[shown]) > 0.995
    assert torch.equal(made.as_torch()(floats(4)), made.as_torch()(src=floats(4)))


def test_transformer_encoder_layer_with_a_causal_mask(tmp_path: Path) -> None:
    module = randomized(nn.TransformerEncoderLayer(C, 4, 24, batch_first=True), 6)
    mask = nn.Transformer.generate_square_subsequent_mask(T)
    batch = {"src": floats(7, MANY), "src_mask": mask, "is_causal": True}
    made = check(module, [batch], batch | {"src": floats(8)}, tmp_path)
    assert made.graph.causal
    with pytest.raises(CaptureError, match="'src_mask' is another than the model was captured"):
        made.as_torch()(src=floats(8), src_mask=torch.zeros(T, T))
    with pytest.raises(CaptureError, match="is_causal=False is not what the model was captured"):
        made.as_torch()(src=floats(8), is_causal=False)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("layers", [0, 2])
def test_transformer_decoder(tmp_path: Path, norm_first: bool, layers: int) -> None:
    layer = nn.TransformerDecoderLayer(C, 2, 24, batch_first=True, norm_first=norm_first)
    module = randomized(nn.TransformerDecoder(layer, layers) if layers else layer, 9)
    batch = {"tgt": floats(10, MANY), "memory": floats(11, MANY), "tgt_is_causal": True,
             "tgt_mask": nn.Transformer.generate_square_subsequent_mask(T)}
    made = check(module, [batch], batch | {"tgt": floats(12), "memory": floats(13)}, tmp_path)
    assert [a.causal for a in made.network.of_kind(Attention)
            ] == [True, False] * max(layers, 1)
    # By position, as the module is called.
    assert torch.equal(made.as_torch()(floats(12), floats(13)),
                       made.as_torch()(memory=floats(13), tgt=floats(12)))


def test_transformer_with_a_mask_alone(tmp_path: Path) -> None:
    """Nothing but the mask says that the target is causal."""
    module = randomized(nn.Transformer(C, 2, 1, 1, 24, batch_first=True), 41)
    batch = {"src": floats(42, MANY), "tgt": floats(43, MANY),
             "tgt_mask": nn.Transformer.generate_square_subsequent_mask(T)}
    made = check(module, [batch], batch | {"src": floats(44), "tgt": floats(45)}, tmp_path)
    assert [a.causal for a in made.network.of_kind(Attention)] == [False, True, False]


# Modules that people write

class Weighing(nn.Module):
    """Attention whose weights nobody reads, as `nn.MultiheadAttention` returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(C, 4, batch_first=True), nn.LayerNorm(C)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(x, x, x)
        return self.norm(x - y)


def test_attention_weights_that_nobody_reads(tmp_path: Path) -> None:
    check(randomized(Weighing(), 46), [floats(47, MANY)], {"x": floats(48)}, tmp_path)


class Block(nn.Module):
    """Self-attention and a gated feed-forward network, in the spelling ``how``."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.embed = nn.Embedding(VOCABULARY, C)
        self.norm = nn.RMSNorm(C)
        self.qkv = nn.Linear(C, 3 * C)
        self.up, self.out = nn.Linear(C, 2 * C), nn.Linear(C, C)
        angle = torch.arange(T)[:, None] * 10.0 ** -torch.arange(C // 4)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def turned(self, x: Tensor) -> Tensor:
        cos, sin = self.cos[:x.shape[2]], self.sin[:x.shape[2]]
        if self.how == "halves":
            a, b = x.chunk(2, dim=-1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        b, t, _ = x.shape
        q, k, v = (z.view(b, t, 2, C // 2).transpose(1, 2)
                   for z in self.qkv(self.norm(x)).split(C, dim=-1))
        q, k = self.turned(q), self.turned(k)
        if self.how == "halves":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.mT / math.sqrt(C // 2)
            hidden = torch.ones(t, t, dtype=torch.bool).triu(1)
            y = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
        x = x + y.transpose(1, 2).reshape(b, t, C)
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.out(torch.sigmoid(gate) * value)


@pytest.mark.parametrize("how", ["halves", "adjacent"])
def test_written_attention_with_rotary_positions(tmp_path: Path, how: str) -> None:
    made = check(randomized(Block(how), 14), [ids(15, MANY)], {"tokens": ids(16)}, tmp_path)
    assert made.graph.causal


class Pieces(nn.Module):
    """What the machine has beside transformers: slices, joins, products, functions, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(C, C), nn.Linear(C + 4, C)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.tanh(self.first(x))
        left, right = a.split((4, C - 4), dim=-1)
        b = self.second(torch.cat((a, torch.sigmoid(left), right), dim=-1)[..., :C + 4])
        joined = b * y + x
        return F.normalize(joined.mean(dim=1), dim=-1), torch.relu(b - y)


@pytest.mark.parametrize("dictionary", [False, True])
def test_pieces(tmp_path: Path, dictionary: bool) -> None:
    batches: list[Any] = [(floats(17, MANY), floats(18, MANY)), (floats(19, 1), floats(20, 1))]
    if dictionary:
        batches = [{"y": y, "x": x} for x, y in batches]
    made = check(randomized(Pieces(), 21), batches, {"x": floats(22), "y": floats(23)}, tmp_path)
    assert [o.pool for o in made.graph.outputs] == ["mean", "none"]
    assert made.graph.outputs[0].normalize


class Sentence(nn.Module):
    """The mean of the tokens that the mask shows."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, C), nn.Embedding(T, C)
        self.layer = nn.TransformerEncoderLayer(C, 2, 24, batch_first=True)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        if attention_mask is None:
            attention_mask = torch.ones_like(ids)
        x = self.layer(x, src_key_padding_mask=attention_mask == 0)
        shown = attention_mask.unsqueeze(-1).float()
        return F.normalize((x * shown).sum(1) / shown.sum(1), dim=-1)


def test_mean_of_padded_sentences(tmp_path: Path) -> None:
    module = randomized(Sentence(), 24)
    lengths = [T, 7, 3]
    mask = inside(lengths).long()
    batches = [{"ids": ids(25, MANY), "attention_mask": inside(lengths * (MANY // 3)).int()}]
    made = check(module, batches, {"ids": ids(26)}, tmp_path)
    padded = {"ids": ids(27, 3), "attention_mask": mask}
    check_padding(made, padded, "attention_mask", lengths)
    assert cosine(made.as_torch()(**padded), module(**padded)) > 0.995
    assert torch.equal(made.as_torch()(**padded), made.as_torch()(padded["ids"], mask))
    named = made.as_torch()(tokens=padded["ids"], attention_mask=mask)
    assert torch.equal(named, made.as_torch()(**padded))


class Unused(nn.Module):
    """Has an argument that it does nothing with, and positions that the caller may give."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, C), nn.Embedding(T, C)

    def forward(self, ids: Tensor, kinds: Tensor, position_ids: Tensor) -> Tensor:
        return torch.tanh(self.words(ids)) + self.places(position_ids)


def test_arguments_that_are_no_inputs(tmp_path: Path) -> None:
    batch = {"kinds": ids(49), "position_ids": torch.arange(T).expand(4, T)}
    made = check(randomized(Unused(), 50), [batch | {"ids": ids(51)}], batch | {"ids": ids(52)},
                 tmp_path)
    assert made.network.indices == ("tokens",)
    with pytest.raises(CaptureError, match=r"'position_ids' must be .* and count from 0"):
        made.as_torch()(**batch | {"ids": ids(52), "position_ids": ids(53)})


# Hugging Face's

def bert(hf: Any) -> nn.Module:
    return hf.BertModel(hf.BertConfig(
        vocab_size=VOCABULARY, hidden_size=C, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=T))


def gpt2(hf: Any) -> nn.Module:
    return hf.GPT2LMHeadModel(hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=C, n_layer=2, n_head=4, n_positions=T, bos_token_id=1,
        eos_token_id=1))


def llama(hf: Any) -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=C, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=24, max_position_embeddings=T))


def gemma(hf: Any) -> nn.Module:
    """Its embeddings are scaled before the first norm."""
    return hf.GemmaForCausalLM(hf.GemmaConfig(
        vocab_size=VOCABULARY, hidden_size=C, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=24, max_position_embeddings=T, head_dim=4))


class Tagger(nn.Module):
    """A GPT-2 inside, whose cache of keys the caller has not turned off."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.body, self.head = gpt2(hf).transformer, nn.Linear(C, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head(hidden)


@pytest.mark.parametrize("model", [bert, gpt2, llama, gemma, Tagger])
def test_hugging_face(hf: Any, tmp_path: Path, model: Callable[[Any], nn.Module]) -> None:
    module = randomized(model(hf), 28)
    lengths = [T, 8, 3, 1]
    mask = inside(lengths).long()
    batches = [{"input_ids": ids(29), "attention_mask": mask}, {"input_ids": ids(30, MANY)[:, :9]}]
    made = check(module, batches, {"input_ids": ids(31)}, tmp_path)
    assert made.graph.generative == (model in (gpt2, llama, gemma))
    padded = {"input_ids": ids(32), "attention_mask": mask}
    check_padding(made, padded, "attention_mask", lengths)
    ours, theirs = tensors(made.as_torch()(**padded))[0], tensors(module(**padded))[0]
    assert cosine(ours[mask.bool()], theirs[mask.bool()]) > 0.995
    if model is bert:
        assert torch.equal(made.as_torch()(padded["input_ids"], mask)[0], ours)


# Budgets

@pytest.mark.parametrize("budget", ["cosine=0.99", "ppl=1.2"])
def test_a_budget_finds_tensors_of_eight_bits(tmp_path: Path, budget: str) -> None:
    module = randomized(Block("halves"), 33)
    if budget.startswith("ppl"):
        module.out = nn.Linear(C, VOCABULARY).requires_grad_(False)
    made = check(module, [ids(seed, 8) for seed in range(34, 39)], {"tokens": ids(40)}, tmp_path,
                 recipe=sq.Recipe(budget=budget), least=0.98)
    caches = {name for a in made.network.of_kind(Attention) for name in (a.k, a.v)}
    assert any(t.bits == 8 for t in made.graph.tensors.values() if t.name not in caches)
    assert any(reason.startswith("8 bits") for reason in made.reasons.values())

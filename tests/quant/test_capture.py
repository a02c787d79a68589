"""`capture` against the modules themselves: the same results, alone, shorter and padded."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from systolith.quant.capture import CaptureError, capture
from systolith.quant.network import (
    Attention,
    Embed,
    Linear,
    Network,
    Output,
    Rope,
)
from tests.quant.small import CONTEXT, VOCABULARY, small_llama

B, T, C = 2, 9, 16


def close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-4 of the largest result."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def one(network: Network, inputs: dict[str, Tensor], lengths: Tensor | None = None) -> Tensor:
    (result,) = network.results(network.run(inputs, lengths), lengths)
    return result


def randomized(module: nn.Module) -> nn.Module:
    """Norms and biases that matter."""
    for name, p in module.named_parameters():
        nn.init.normal_(p, 1.0 if "norm" in name and "weight" in name else 0.0, 0.3)
    return module.eval().requires_grad_(False)


def kinds(network: Network) -> list[str]:
    return [type(op).__name__ for op in network.ops]


# Language models

@pytest.mark.parametrize("pairs", ["adjacent", "halves"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_llama(pairs: str, tied: bool, seed: int) -> None:
    model = small_llama(seed, rope_pairs=pairs, tied_embedding=tied)
    network = capture(model, torch.randint(VOCABULARY, (1, 5)))
    assert network.context == CONTEXT and network.generative
    assert network.vocabulary == VOCABULARY and network.indices == ("tokens",)
    assert {op.pairs for op in network.of_kind(Rope)} == {pairs}
    assert [op.head_dim for op in network.of_kind(Rope)] == [4] * 4
    assert all(op.causal and (op.heads, op.kv_heads) == (4, 2)
               for op in network.of_kind(Attention))
    for length in (1, 7, CONTEXT):
        tokens = torch.randint(VOCABULARY, (3, length))
        close(one(network, {"tokens": tokens}), model(tokens))


def test_names_and_sources_of_llama() -> None:
    network = capture(small_llama(0), torch.randint(VOCABULARY, (1, 5)))
    names = [op.name for op in network.ops]
    assert names[0] == "model.embed_tokens" and "model.layers.1.self_attn.k_proj" in names
    assert "model.layers.0.input_layernorm" in names
    assert "model.layers.1.self_attn.attention" in names and "model.layers.0.mlp.silu" in names
    source = network.op("model.layers.0.mlp.silu").source
    assert source.module == "model.layers.0.mlp" and source.file.endswith("llama.py")
    assert source.line > 0


# Encoders

@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_encoder(norm_first: bool, activation: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(C, 2, 24, batch_first=True, norm_first=norm_first,
                                       activation=activation)
    module = randomized(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    module.train()
    network = capture(module, torch.randn(B, T, C))
    assert module.training and module.layers[0].training, "capture must restore the flags"
    module.eval()
    assert network.given == ("src",) and not network.generative
    assert sum(isinstance(op, Linear) for op in network.ops) == 2 * 6
    for length in (1, 5, T):
        x = torch.randn(3, length, C)
        close(one(network, {"src": x}), module(x))
    x, lengths = torch.randn(3, T, C), torch.tensor([9, 4, 1])
    padding = torch.arange(T) >= lengths[:, None]
    ours = one(network, {"src": x}, lengths)
    theirs = module(x, src_key_padding_mask=padding)
    close(ours[~padding], theirs[~padding])


def test_encoder_layer_with_a_causal_mask() -> None:
    torch.manual_seed(0)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(C, 4, 24, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            return self.layer(x, src_mask=mask, is_causal=True)
    module = randomized(Masked())
    network = capture(module, torch.randn(B, T, C))
    assert next(network.of_kind(Attention)).causal
    x = torch.randn(2, 6, C)
    close(one(network, {"x": x}), module(x))


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_decoder(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(C, 2, 24, batch_first=True, norm_first=norm_first)
    module = randomized(nn.TransformerDecoder(layer, 2))
    mask = nn.Transformer.generate_square_subsequent_mask(T)
    network = capture(module, {"tgt": torch.randn(B, T, C), "memory": torch.randn(B, T, C),
                               "tgt_mask": mask, "tgt_is_causal": True})
    assert network.given == ("tgt", "memory")
    assert [a.causal for a in network.of_kind(Attention)] == [True, False] * 2
    for length in (2, T):
        tgt, memory = torch.randn(2, 3, length, C)
        close(one(network, {"tgt": tgt, "memory": memory}),
              module(tgt, memory, tgt_mask=mask[:length, :length]))


def test_a_memory_of_another_length_is_refused() -> None:
    decoder = nn.TransformerDecoderLayer(C, 2, 24, batch_first=True)
    with pytest.raises(CaptureError, match=r"\(a memory .*\): 'tgt' has \[2, 9\], 'memory' has "
                                           r"\[2, 7\]"):
        capture(decoder, (torch.randn(B, T, C), torch.randn(B, 7, C)))


# Attention as people write it

class Written(nn.Module):
    """Self-attention with two heads, in one of several spellings."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.qkv = nn.Linear(C, 3 * C)
        self.out = nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        p = c // 2
        if self.how == "interleaved":
            q, k, v = (z.transpose(1, 2) for z in self.qkv(x).view(b, t, 2, 3, p).unbind(3))
        else:
            q, k, v = (z.view(b, t, 2, p).transpose(1, 2) for z in self.qkv(x).chunk(3, dim=-1))
        seen = torch.ones(t, t, dtype=torch.bool).tril()
        match self.how:
            case "einsum":
                s = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(p)
                s = s.masked_fill(~seen, -math.inf).softmax(-1)
                y = torch.einsum("bhij,bhjd->bihd", s, v)
            case "bmm":
                q, k, v = (z.reshape(2 * b, t, p) for z in (q * p ** -0.5, k, v))
                s = torch.bmm(q, k.transpose(1, 2)).view(b, 2, t, t) + torch.where(seen, 0.0, -1e9)
                y = torch.bmm(s.softmax(-1).view(2 * b, t, t), v).view(b, 2, t, p).transpose(1, 2)
            case "band":
                seen = seen & ~seen.tril(-3)
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)
            case "bias":
                s = q @ k.mT - 0.5 * torch.arange(t)
                y = (s.softmax(-1) @ v).transpose(1, 2)
            case _:
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
                y = y.transpose(1, 2)
        return x + self.out(y.reshape(b, t, c))


@pytest.mark.parametrize("how", ["einsum", "bmm", "interleaved", "fused"])
def test_written_attention(how: str) -> None:
    torch.manual_seed(0)
    module = randomized(Written(how))
    network = capture(module, torch.randn(B, T, C))
    assert kinds(network) == ["Given", *["Linear"] * 3, "Attention", "Linear", "Add"]
    assert next(network.of_kind(Attention)).causal
    for length in (2, T):
        x = torch.randn(2, length, C)
        close(one(network, {"x": x}), module(x))


@pytest.mark.parametrize(("how", "message"), [
    ("band", "this mask is another"),
    ("bias", "Only a mask .* can be added to attention scores"),
])
def test_unsupported_masks(how: str, message: str) -> None:
    with pytest.raises(CaptureError, match=message + r".*test_capture\.py:\d+"):
        capture(Written(how), torch.randn(B, T, C))


# Single operations

class Formula(nn.Module):
    """A function of a linear layer's result y [B, T, C]."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first = nn.Linear(C, C)
        self.second = nn.Linear(C, C)
        self.gain = nn.Parameter(torch.rand(C) + 0.5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.first(x))


def layer_norm(m: Formula, y: Tensor) -> Tensor:
    mean = y.mean(-1, keepdim=True)
    return m.gain * (y - mean) / torch.sqrt(((y - mean) ** 2).mean(-1, keepdim=True) + 1e-5) + 0.0


CASES = {
    "layer_norm": (layer_norm, ["Norm"]),
    "var": (lambda m, y: (y - y.mean(-1, keepdim=True)) * m.gain
            * (y.var(-1, correction=0, keepdim=True) + 1e-2).rsqrt(), ["Norm"]),
    "rms": (lambda m, y: y / ((y * y).mean(-1, keepdim=True) + 1e-2).sqrt() * m.gain, ["Norm"]),
    "rms_norm": (lambda m, y: F.rms_norm(y, (C,), m.gain), ["Norm"]),
    "unit": (lambda m, y: m.second(F.normalize(y, dim=-1)), ["Norm", "Linear"]),
    "gelu": (lambda m, y: 0.5 * y * (1 + torch.erf(y / math.sqrt(2))), ["Function"]),
    "silu": (lambda m, y: y * torch.sigmoid(y), ["Function"]),
    "quick": (lambda m, y: y * torch.sigmoid(1.702 * y), ["Scale", "Function", "Multiply"]),
    "residual": (lambda m, y: y + torch.relu(y), ["Function", "Add"]),
    "glu": (lambda m, y: F.gelu(y[..., :8]) * y[..., 8:], ["Linear", "Function", "Multiply"]),
    "difference": (lambda m, y: y - m.second(y), ["Linear", "Add"]),
    "layer_scale": (lambda m, y: y + m.gain * m.second(y), ["Linear", "Add"]),
    "negative": (lambda m, y: m.second(torch.relu(-y)), ["Function", "Linear"]),
    "in_place": (lambda m, y: m.second(y).add_(y).relu_(), ["Linear", "Add", "Function"]),
    "concat": (lambda m, y: torch.cat([m.second(y), y.tanh()], -1),
               ["Linear", "Function", "Concat"]),
    "slice": (lambda m, y: y.tanh()[..., 4:8], ["Function", "Slice"]),
    "permuted": (lambda m, y: m.second(y.tanh().flip(-1)), ["Function", "Linear"]),
    "scaled": (lambda m, y: y.tanh() * 3, ["Function", "Scale"]),
    "bias": (lambda m, y: y.tanh() + m.gain, ["Function", "Embed", "Add"]),
    "minus": (lambda m, y: -y.tanh(), ["Function", "Embed", "Multiply"]),
    "minus_tensor": (lambda m, y: m.second(y) - y.tanh(),
                     ["Linear", "Function", "Embed", "Multiply", "Add"]),
    "gains": (lambda m, y: y.tanh() * m.gain, ["Function", "Embed", "Multiply"]),
    "by_position": (lambda m, y: y * torch.arange(1, y.shape[1] + 1)[:, None],
                    ["Embed", "Multiply"]),
    "first": (lambda m, y: m.second(y[:, 0]).tanh(), ["Linear", "Function"]),
    "last": (lambda m, y: m.second(y[:, -1]), ["Linear"]),
    "mean": (lambda m, y: m.second(y.mean(1)), ["Linear"]),
    "unit_mean": (lambda m, y: F.normalize(y.mean(1), dim=-1), []),
}


@pytest.mark.parametrize("case", CASES)
def test_formula(case: str) -> None:
    torch.manual_seed(0)
    function, expected = CASES[case]
    module = Formula(function).eval().requires_grad_(False)
    network = capture(module, torch.randn(B, T, C))
    # How often a linear layer of the network was there before belongs to the case.
    found = [kind for kind in kinds(network) if kind not in ("Given", "Linear")]
    assert found == [kind for kind in expected if kind != "Linear"]
    assert sum(k == "Linear" for k in kinds(network)) <= 1 + expected.count("Linear")
    for length in (2, T):
        x = torch.randn(3, length, C)
        close(one(network, {"x": x}), module(x))


@pytest.mark.parametrize(("function", "message"), [
    (lambda m, y: y.cumsum(1), "operator cumsum is not supported"),
    (lambda m, y: F.softplus(y), "no operation for softplus"),
    (lambda m, y: y / m.second(y), "quotient"),
    (lambda m, y: y + y.flip(1), "same tokens and channels"),
    (lambda m, y: F.dropout(y, 0.5), "random"),
    (lambda m, y: y + torch.rand_like(y), "random"),
    (lambda m, y: y * torch.tensor([1.0, 2.0])[:, None, None],
     "differs between the sequences"),
    (lambda m, y: y.mean(1).tanh(), "no operation for tanh"),
    (lambda m, y: y if y.sum() > 0 else -y, "decides by the values of its tensors"),
    (lambda m, y: y[:, :3], "neither all tokens"),
    (lambda m, y: m.gain, "does not depend on its inputs"),
])
def test_errors_name_the_place(function, message: str) -> None:
    with pytest.raises(CaptureError, match=message) as error:
        capture(Formula(function), torch.randn(B, T, C))
    if "inputs" not in message:
        assert "test_capture.py:" in str(error.value)
    assert "\n" not in str(error.value)


# Positions, masks, pooling

class Sentence(nn.Module):
    """Tokens, segments and positions; the mean of the tokens that the mask shows."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, C)
        self.segments = nn.Embedding(2, C)
        self.places = nn.Embedding(T, C)

    def forward(self, ids: Tensor, segments: Tensor, attention_mask: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1])
        x = self.words(ids) + self.places(positions) + self.segments(segments)
        mask = attention_mask.unsqueeze(-1).expand(x.shape).float()
        return F.normalize((x * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=-1)


def test_masked_mean() -> None:
    torch.manual_seed(0)
    module = Sentence().eval().requires_grad_(False)
    ids, segments = torch.randint(20, (3, T)), torch.randint(2, (3, T))
    mask = torch.ones(3, T, dtype=torch.int64)
    network = capture(module, {"ids": ids, "segments": segments, "attention_mask": mask})
    assert network.indices == ("tokens", "segments")
    assert network.outputs == (Output(x=network.outputs[0].x, pool="mean", normalize=True),)
    assert [op.index for op in network.of_kind(Embed)] == ["tokens", "positions", "segments"]
    lengths = torch.tensor([9, 2, 5])
    mask = (torch.arange(T) < lengths[:, None]).long()
    close(one(network, {"tokens": ids, "segments": segments}, lengths),
          module(ids, segments, mask))


# Batches

@pytest.mark.parametrize("batch", [1, 3])
def test_modules_of_one_fixed_shape(batch: int) -> None:
    class Fixed(Written):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(batch, T, C))
    torch.manual_seed(0)
    module = randomized(Fixed("fused"))
    example = torch.randn(batch, T, C)
    with pytest.raises(CaptureError, match="cannot be run on the batch"):
        capture(module, example)
    network = capture(module, example, fixed=True)
    assert network.context == T
    close(one(network, {"x": example}), module(example))


@pytest.mark.parametrize(("batch", "message"), [
    ("text", "must be a tensor, a tuple or a dictionary"),
    ({"y": torch.randn(B, T, C)}, "takes no argument 'y'; it takes x"),
    ((torch.randn(B, T, C), torch.randn(B, T, C)), "at most 1"),
    (torch.randn(B, C), r"'x' is of shape \[2, 16\]"),
    (torch.randn(B, T, 5), "cannot be run on the batch"),
    ({}, "no tensor"),
])
def test_wrong_batch(batch, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(Formula(lambda m, y: y), batch)


def test_integers_that_no_embedding_reads() -> None:
    class Counts(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return ids * 2.0
    with pytest.raises(CaptureError, match=r"mul reads the integer input 'ids'; only an embedding "
                                           r"can \(.*test_capture\.py:\d+"):
        capture(Counts(), torch.randint(5, (B, T)))

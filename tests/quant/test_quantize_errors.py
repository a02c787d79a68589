"""What `sq.quantize` refuses: in one sentence, with the place, and before any work is done."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import systolith.quant as sq
from systolith.errors import UserError
from systolith.quant.network import Network

B, T, C = 2, 8, 16
HERE = r"test_quantize_errors\.py:\d+\)$"


class Inner(nn.Module):
    """A function of a tensor [B, T, C], inside a module that has a path."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(C, C)
        self.conv = nn.Conv1d(C, C, 3, padding=1)
        self.lstm = nn.LSTM(C, C, batch_first=True)

    def forward(self, y: Tensor) -> Any:
        return self.function(self, y)


class Outer(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.first = nn.Linear(C, C)
        self.blocks = nn.ModuleList([Inner(function)])

    def forward(self, x: Tensor) -> Any:
        return self.blocks[0](self.first(x))


def refused(module: nn.Module, batches: Any, message: str, last: str = "") -> None:
    """One sentence; ``last``: what was reported before."""
    steps: list[str] = []
    with pytest.raises(UserError) as error:
        sq.quantize(module, batches, progress=lambda step, part: steps.append(step))
    assert re.search(message, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)
    assert steps == ([last] if last else [])


@pytest.mark.parametrize(("function", "message"), [
    (lambda m, y: m.conv(y.mT).mT, r"The operator conv1d is not supported \(blocks\.0\.conv, "),
    (lambda m, y: y.cumsum(1), r"The operator cumsum is not supported \(blocks\.0, "),
    (lambda m, y: y.sort(-1).values, r"The operator sort is not supported \(blocks\.0, "),
    (lambda m, y: m.lstm(y)[0], r"The operator lstm is not supported \(blocks\.0\.lstm, "),
    (lambda m, y: F.group_norm(y.mT, 4).mT, r"The operator group_norm is .*\(blocks\.0, "),
    (lambda m, y: torch.where(y > 0, y, 0.0), r"The operator gt is not supported \(blocks\.0, "),
    (lambda m, y: y.exp(), r"no operation for exp as it is used here.*\(blocks\.0, "),
    (lambda m, y: y[y > 0], r"The operator gt is not supported \(blocks\.0, "),
    (lambda m, y: y.nonzero(), r"The shape of nonzero's result depends on .* \(blocks\.0, "),
    (lambda m, y: F.rms_norm(y.view(B, -1, 4, 4), (4,)).flatten(2),
     r"A norm over a part of the channels .*\(blocks\.0, "),
    (lambda m, y: y.softmax(-1), r"A softmax is only supported over the keys .*\(blocks\.0, "),
])
def test_operators(function: Callable[..., Any], message: str) -> None:
    refused(Outer(function), [torch.randn(B, T, C)], message + r".*" + HERE, "capturing")


def counting(m: Inner, y: Tensor) -> Tensor:
    for _ in range(int(y.abs().max().item())):
        y = y + 1
    return y


@pytest.mark.parametrize("function", [
    counting,
    lambda m, y: y if y.sum() > 0 else -y,
])
def test_control_flow_that_depends_on_data(function: Callable[..., Any]) -> None:
    message = "The module decides by the values of its tensors what to compute.*" + HERE
    refused(Outer(function), [torch.randn(B, T, C)], message, "capturing")


@pytest.mark.parametrize(("function", "message"), [
    (lambda m, y: m.linear(y.reshape(len(y), -1, 2 * C)[..., :C]),
     r"A result of shape \[2, 4, 16\] is neither all tokens .*" + HERE),
    (lambda m, y: m.linear(y.mT.reshape(y.shape)), "must hold the channels of one token .*" + HERE),
    (lambda m, y: y + y.flip(1), "must combine the same tokens .*" + HERE),
    (lambda m, y: y / y.shape[1], "for 3 tokens something else than for 8: what it does depends on "
                                  "the length of the sequences"),
    (lambda m, y: y if y.shape[1] > 4 else -y, "for 3 tokens something else than for 8"),
])
def test_shapes_beyond_batch_and_sequence(function: Callable[..., Any], message: str) -> None:
    refused(Outer(function), [torch.randn(B, T, C)], message, "capturing")


def test_results_that_are_no_tensors() -> None:
    refused(Outer(lambda m, y: None), [torch.randn(B, T, C)], "result holds no tensor", "capturing")


def test_half_precision() -> None:
    refused(Outer(lambda m, y: y).bfloat16(), [torch.randn(B, T, C)],
            r"'first\.weight' is bfloat16; give the model in float32: model\.float\(\)",
            "capturing")


# Data

class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(10, C), nn.Linear(C, C)

    def forward(self, ids: Tensor, x: Tensor, attention_mask: Tensor | None = None,
                position_ids: Tensor | None = None, double: bool = False) -> Tensor:
        return self.linear(self.embed(ids) + x) * (2 if double else 1)


IDS, X = torch.randint(10, (B, T)), torch.randn(B, T, C)
LEFT = (torch.arange(T) >= torch.tensor([[0], [3]])).long()


@pytest.mark.parametrize(("batches", "message"), [
    ([], "Calibration needs at least one batch"),
    (["text"], "must be a tensor, a tuple or a dictionary of tensors, not str"),
    ([{"ids": IDS, "y": X}], "takes no argument 'y'; it takes ids, x, attention_mask"),
    ([(IDS, X, None, None, True, 6)], "The batch has 6 tensors, the module takes at most 5"),
    ([(IDS, [X])], "The input 'x' is no tensor"),
    ([(IDS, X[0])], r"The input 'x' is of shape \[8, 16\]; a batch holds"),
    ([(IDS[:, :0], X[:, :0])], r"'ids' is of shape \[2, 0\].*and is not empty"),
    ([(IDS, X[:, :5])], r"same length .*: 'ids' has \[2, 8\], 'x' has \[2, 5\]"),
    ([(IDS, X), {"ids": IDS}], "Calibration batch 2 lacks the input 'x'"),
    ([(IDS[:, :4], X[:, :4], LEFT[:, :4] * 0 + 1), (IDS, X[..., :5])],
     "Calibration batch 1: 'x' must have 5 channels, not 16"),
    ([(IDS, X), (IDS, X, None, None, True)], "Calibration batch 2 has other options"),
    ([(IDS, X, LEFT)], "attention_mask: the padding must stand on the right of each sequence"),
    ([(IDS, X, LEFT * 0)], "attention_mask: sequence 0 has no token"),
    ([(IDS, X, LEFT[:, :3])], r"The mask 'attention_mask' is of shape \[2, 3\]"),
    ([(IDS, X, None, IDS + 1)], "'position_ids' must be .* count from 0"),
])
def test_batches(batches: list[Any], message: str) -> None:
    refused(Two(), batches, message)


def test_integers_out_of_range() -> None:
    refused(Two(), [(IDS + 9, X)], "out of the range of its embedding .*" + HERE, "capturing")
    with pytest.raises(UserError, match="Calibration batch 2: 'tokens' must be 0 to 9, not"):
        sq.quantize(Two(), [(IDS, X), (IDS + 9, X)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("batch", [0, 1])
def test_what_is_not_finite(value: float, batch: int) -> None:
    batches = [(IDS, X.clone()), (IDS, X.clone())]
    batches[batch][1][0, 0, 0] = value
    with pytest.raises(UserError, match=r"The tensor 'x' .* is not finite"):
        sq.quantize(Two(), batches)
    module = Two()
    module.linear.weight.data[3, 3] = value
    with pytest.raises(UserError, match=r"The tensor 'linear' \(linear, .*\) is not finite"):
        sq.quantize(module, [(IDS, X)])


def test_masks_of_attention() -> None:
    layer = nn.TransformerEncoderLayer(C, 2, 24, batch_first=True)
    band = torch.ones(T, T, dtype=torch.bool).tril(-3)
    refused(layer, [{"src": X, "src_mask": band}], "'src_mask' is neither causal nor the same")
    causal = nn.Transformer.generate_square_subsequent_mask(T)
    refused(layer, [{"src": X, "src_mask": causal}, {"src": X, "src_mask": causal * 0}],
            "Calibration batch 2: 'src_mask' is another mask")


def test_padding_that_differs_between_inputs() -> None:
    decoder = nn.TransformerDecoderLayer(C, 2, 24, batch_first=True)
    short, long = (torch.arange(T) >= torch.tensor([[n], [T]]) for n in (3, 5))
    refused(decoder, [{"tgt": X, "memory": X, "tgt_key_padding_mask": short,
                       "memory_key_padding_mask": long}],
            r"must agree \(tgt_key_padding_mask, memory_key_padding_mask\): all inputs share one")


def test_capture_comes_before_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("calibrated")
    monkeypatch.setattr(Network, "run", never)
    refused(Outer(lambda m, y: y.cumsum(1)), [torch.randn(B, T, C)], "cumsum", "capturing")


# Calls of what was made

@pytest.mark.parametrize(("call", "message"), [
    ({"ids": IDS}, "The input 'x' is missing"),
    ({"x": X}, "The input 'ids' is missing"),
    ({"ids": IDS, "x": X[..., :3]}, r"'x' must have the shape \[B, T, 16\], not \[2, 8, 3\]"),
    ({"ids": IDS, "x": X, "z": X}, "has no input 'z'; it has tokens, x"),
    ({"ids": IDS + 9, "x": X}, "Values of 'tokens' must be 0 to 9"),
    ({"ids": IDS, "x": X[:, :3]}, "must have the same"),
    ({"ids": IDS, "x": X, "attention_mask": LEFT}, "padding must stand on the right"),
    ({"ids": IDS, "x": X, "double": True}, "double=True is not what the model was captured with"),
    ({"ids": torch.cat([IDS, IDS], 1), "x": torch.cat([X, X], 1)}, "context is 8 tokens, and 16"),
])
def test_calls(call: dict[str, Any], message: str) -> None:
    made = sq.quantize(Two(), [(IDS, torch.ones_like(X)), {"ids": IDS.numpy(), "x": X.numpy()}])
    with pytest.raises(UserError, match=message):
        made.as_torch()(**call)
    with pytest.raises(UserError, match="'ids' is given twice"):
        made.as_torch()(IDS, ids=IDS)

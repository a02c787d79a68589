"""Other people's small models with random weights, and how our results are compared with theirs."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from systolith.quant.tokenizer_json import JsonTokenizer, wordpiece_json

VOCABULARY, CONTEXT = 50, 16


def randomized(module: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    for name, p in module.named_parameters():
        gain = p.dim() == 1 and name.endswith("weight")
        nn.init.normal_(p, 1.0 if gain else 0.0, 0.3)
    return module.eval().requires_grad_(False)


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def batch(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Random tokens and the mask of their padding on the right."""
    t = int(lengths.max())
    mask = (torch.arange(t) < lengths[:, None]).long()
    return torch.randint(1, VOCABULARY, (len(lengths), t)) * mask, mask


# A folder that holds a model ------------------------------------------------------------------


def describe(folder: Path, **changes: object) -> Path:
    """Changes keys of config.json, drops those that are None, and returns the file."""
    file = folder / "config.json"
    raw = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    return file


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def put(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """Replaces the weights, and returns the file."""
    file = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


# A vocabulary ----------------------------------------------------------------------------------


def vocab_txt(size: int) -> str:
    """The vocab.txt of a BERT: [CLS] is 2, [SEP] 3, letters from 5 on, ##b 19, cat 20."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklm", "##a", "##b", "cat"]
    return "\n".join(words + [f"word{i}" for i in range(size - len(words))]) + "\n"


def wordpiece(size: int) -> JsonTokenizer:
    return JsonTokenizer(wordpiece_json(vocab_txt(size).encode(), "test", {}), "test")

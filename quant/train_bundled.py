"""Reproduces the bundled model: `python -m systolith.quant.train_bundled OUT`.

It takes ten minutes on one idle core. Nothing is downloaded: the text is Python's own reference
manual as `pydoc_data.topics` carries it. CPython versions differ in it, so the README written next
to the model records the version and the sha256 of the text. Every tenth topic is held out, and
paragraphs that other topics repeat (the chapters contain the sections) leave the training text, so
the held-out loss is honest.
"""

import argparse
import hashlib
import itertools
import json
import platform
import re
import time
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from systolith.quant.llama import Llama, LlamaConfig
from systolith.quant.tokenizer import BOS, SPECIAL, SPECIAL_PIECES, Tokenizer

CONFIG = LlamaConfig(
    dim=64, hidden_dim=176, n_layers=5, n_heads=4, n_kv_heads=2, vocab_size=512, max_seq_len=512,
    norm_eps=1e-5, rope_base=10000.0, rope_pairs="halves", tied_embedding=True)
SEED = 20240229
WINDOW = 256        # tokens of a held-out window, BOS included
RARE = 25           # a character seen less often is left to its bytes

# What a piece may look like, so that words, indentation and punctuation do not grow together.
PIECE = re.compile(r" ?[A-Za-z_]+|[0-9]+| ?[^\sA-Za-z0-9]+| +|\n+ *")
PARAGRAPHS = re.compile(r"\n\n+")


def split_topics() -> tuple[list[list[str]], list[list[str]]]:
    """Training and held-out documents, each a list of paragraphs; none occurs in both parts."""
    seen: set[str] = set()

    def fresh(text: str) -> list[str]:
        paragraphs = []
        for paragraph in PARAGRAPHS.split(text.strip("\n")):
            key = " ".join(paragraph.split())
            if key and key not in seen:
                seen.add(key)
                paragraphs.append(paragraph)
        return paragraphs

    names = sorted(topics)
    held = [fresh(topics[name]) for name in names[5::10]]
    train = [fresh(topics[name]) for i, name in enumerate(names) if i % 10 != 5]
    return [d for d in train if d], [d for d in held if d]


def train_vocabulary(text: str, size: int) -> Tokenizer:
    """Byte-pair pieces: the characters of the text, then whichever pair is most frequent."""
    characters, counts = np.unique(np.array(list(text)), return_counts=True)
    known = [c for c, n in zip(characters, counts, strict=True) if n >= RARE]
    pieces = [str(c) for c in known]
    index = {c: i for i, c in enumerate(pieces)}
    merged: list[str] = []
    ids = np.array([index.get(c, -1) for c in text])
    while len(pieces) < size - SPECIAL:
        pair = ids[:-1] * size + ids[1:]
        pair[(ids[:-1] < 0) | (ids[1:] < 0)] = -1
        # aaaa holds the pair (a, a) three times, but only the first and the third can merge.
        equal, place = ids[:-1] == ids[1:], np.arange(len(pair))
        began = np.maximum.accumulate(np.where(equal, -1, place))
        pair[equal & ((place - began) % 2 == 0)] = -1
        counts = np.bincount(pair[pair >= 0])
        found = np.flatnonzero(counts)
        for best in found[np.argsort(-counts[found], kind="stable")]:
            a, b = divmod(int(best), size)
            piece = pieces[a] + pieces[b]
            if piece not in index and PIECE.fullmatch(piece):
                break
        else:
            raise SystemExit(f"the text yields only {len(pieces)} of {size - SPECIAL} pieces")
        at = np.flatnonzero(pair == best)
        ids[at] = index[piece] = len(pieces)
        ids = np.delete(ids, at + 1)
        pieces.append(piece)
        merged.append(piece)
    order = [*merged, *(str(c) for c in known)]
    return Tokenizer([*SPECIAL_PIECES, *(p.encode() for p in order)],
                     [0.0] * SPECIAL + [-float(i) for i in range(len(order))])


class Corpus:
    """Tokens of documents as one stream, and the paragraphs at which a window may begin."""

    def __init__(self, documents: list[list[str]], tokenizer: Tokenizer) -> None:
        stream: list[int] = []
        self.bytes = 0
        self.starts: list[tuple[list[int], int]] = []  # tokens of a first paragraph, what follows
        for document in documents:
            for paragraph in document:
                stream += tokenizer.merge("\n\n" + paragraph)
                self.bytes += len(paragraph.encode()) + 2
                if not paragraph[0].isspace():
                    first = tokenizer.encode(paragraph)
                    self.starts.append((first, len(stream)))
        self.stream = np.array(stream, dtype=np.int64)

    def window(self, rng: np.random.Generator, length: int) -> tuple[np.ndarray, int]:
        """length + 1 tokens after BOS, and how many of the first must not be predicted from it.

        Half of the windows begin with a paragraph, which is what BOS means; the others begin
        anywhere for variety, and their first token teaches nothing.
        """
        while rng.random() < 0.5:
            first, at = self.starts[rng.integers(len(self.starts))]
            tokens = np.concatenate((first, self.stream[at:at + length + 1]))[:length + 1]
            if len(tokens) == length + 1:
                return tokens, 0
        at = rng.integers(len(self.stream) - length)
        return np.concatenate(([BOS], self.stream[at:at + length])), 1

    def batch(self, rng: np.random.Generator, size: int, length: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, int64 [size, length]; target -100 is not learned."""
        rows = [self.window(rng, length) for _ in range(size)]
        tokens = torch.tensor(np.stack([r[0] for r in rows]))
        targets = tokens[:, 1:].clone()
        for target, (_, unknown) in zip(targets, rows, strict=True):
            target[:unknown] = -100
        return tokens[:, :-1], targets


def held_out_windows(documents: list[list[str]], tokenizer: Tokenizer) -> np.ndarray:
    """uint16 [n, WINDOW]: BOS, then text from where a paragraph or the last window ended."""
    windows = []
    for document in documents:
        tokens = tokenizer.encode("\n\n".join(document), bos=False)
        for at in range(0, len(tokens) - WINDOW + 2, WINDOW - 1):
            windows.append([BOS, *tokens[at:at + WINDOW - 1]])
    return np.array(windows, dtype=np.uint16)


@torch.no_grad()
def held_out_loss(model: Llama, windows: Tensor) -> float:
    """Mean negative log likelihood of a token, in nats."""
    model.eval()
    logits = torch.cat([model(w[:, :-1]) for w in windows.split(16)])
    model.train()
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()


def new_model(dropout: float) -> Llama:
    """A model with small random weights, whose branches and embedding drop elements in training."""
    model = Llama(CONFIG)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            last = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.05 / (2 * CONFIG.n_layers) ** 0.5 if last else 0.05
            torch.nn.init.normal_(weight, std=std)

    def drop(module, inputs, output):
        return F.dropout(output, dropout, module.training)

    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(drop)
    return model


def save(out: Path, model: Llama, tokenizer: Tokenizer, windows: np.ndarray, notes: str) -> None:
    """Writes the whole bundle; an older one is replaced."""
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().clone() for k, v in model.state_dict().items()},
              out / "model.safetensors", metadata={"format": "pt"})
    c = CONFIG
    (out / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
        "hidden_size": c.dim, "intermediate_size": c.hidden_dim, "hidden_act": "silu",
        "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads, "vocab_size": c.vocab_size,
        "max_position_embeddings": c.max_seq_len, "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_base, "rope_pairs": c.rope_pairs,
        "tie_word_embeddings": c.tied_embedding, "bos_token_id": 1, "eos_token_id": 2,
    }, indent=2) + "\n")
    tokenizer.save(out / "tokenizer.bin")
    np.save(out / "held_out.npy", windows)
    (out / "README.md").write_text(notes)


def train(out: Path, steps: int, peak: float, decay: float, dropout: float) -> None:
    """Trains, prints the held-out loss and keeps the best checkpoint in `out`."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    sha = hashlib.sha256(json.dumps(topics, sort_keys=True).encode()).hexdigest()
    train_text, held_text = split_topics()
    tokenizer = train_vocabulary("".join("\n\n" + p for d in train_text for p in d),
                                 CONFIG.vocab_size)
    corpus = Corpus(train_text, tokenizer)
    windows = held_out_windows(held_text, tokenizer)
    held = torch.tensor(windows.astype(np.int64))
    held_bytes = sum(len(tokenizer.piece(a, b)) for w in windows.tolist()
                     for a, b in itertools.pairwise(w))
    per_byte = held[:, 1:].numel() / held_bytes / np.log(2)  # nats per token to bits per byte
    model = new_model(dropout)
    size = sum(p.numel() for p in model.parameters())
    print(f"Python {platform.python_version()}, topics sha256 {sha}")
    print(f"{size} parameters; {corpus.bytes} bytes in {len(corpus.stream)} tokens to learn, "
          f"{held_bytes} bytes in {len(windows)} windows held out", flush=True)

    matrices = [p for p in model.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": decay},
                                   {"params": gains, "weight_decay": 0.0}],
                                  lr=peak, betas=(0.9, 0.98))
    warmup, best, began = 100, float("inf"), time.monotonic()
    for step in range(steps):
        progress = max(step - warmup, 0) / (steps - warmup)
        rate = peak * min((step + 1) / warmup, 0.01 + 0.99 * (1 + np.cos(np.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # One step in four is long, so that every position up to max_seq_len has been trained.
        x, y = corpus.batch(rng, *((8, 512) if step % 4 == 3 else (16, 256)))
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            nats = held_out_loss(model, held)
            line = (f"{nats:.4f} nats per token, {nats * per_byte:.4f} bits per byte, "
                    f"perplexity {np.exp(nats):.3f}")
            print(f"step {step + 1}: training {loss.item():.3f}, held out {line}, "
                  f"{time.monotonic() - began:.0f} s", flush=True)
            if nats < best:
                best = nats
                notes = NOTES.format(size=size, line=line, step=step + 1, sha=sha,
                                     python=platform.python_version(), torch=torch.__version__,
                                     train=len(corpus.stream), held=len(windows), window=WINDOW,
                                     steps=steps, rate=peak, decay=decay, dropout=dropout)
                save(out, model, tokenizer, windows, notes)


NOTES = """# The bundled model

A Llama-architecture language model of {size} parameters (dim 64, 5 layers, 4 query heads of 16
that share 2 key/value heads, hidden 176, 512 tokens, tied embedding, RoPE in halves), trained here
on Python's language reference. `load_model("bundled")` loads it.

| file | what it is |
|---|---|
| `model.safetensors`, `config.json` | float32 weights under Hugging Face's names |
| `tokenizer.bin` | byte-pair vocabulary in llama2.c's format |
| `held_out.npy` | uint16 [{held}, {window}]: held-out text as tokens, each row begins with BOS |

Held out: {line}.
That is step {step} of {steps}, the best of the evaluations every 200 steps.

Text: `pydoc_data.topics` of Python {python}, sha256 `{sha}`
of `json.dumps(topics, sort_keys=True)`; {train} tokens to learn after removing repetitions. Every
tenth topic is held out, and its paragraphs do not occur in the training text. Python's
documentation is under the PSF License Agreement (https://docs.python.org/3/license.html).

Made with torch {torch} by

    python -m systolith.quant.train_bundled OUT --steps {steps} --rate {rate} --decay {decay} \\
        --dropout {dropout}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m systolith.quant.train_bundled",
                                     description="Trains the bundled model again.")
    parser.add_argument("out", type=Path, help="folder for the model")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.2, help="weight decay")
    parser.add_argument("--dropout", type=float, default=0.1)
    args = parser.parse_args()
    train(args.out, args.steps, args.rate, args.decay, args.dropout)


if __name__ == "__main__":
    main()

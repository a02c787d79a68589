"""A byte-pair tokenizer in llama2.c's vocabulary format.

File: int32 length of the longest piece; then for every token float32 merge score, int32 length and
that many bytes; all little-endian. Token 0 is <unk>, 1 begins a sequence (BOS), 2 ends one (EOS),
and 3 + b is the raw byte b, spelled `<0x0A>`.
"""

import heapq
import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from systolith.errors import TokenizerError

UNK, BOS, EOS = 0, 1, 2
FIRST_BYTE = 3          # the token of byte 0
SPECIAL = FIRST_BYTE + 256
_LONGEST = 1 << 16      # a longer piece means that the file is not a vocabulary

BYTE_PIECES = [b"<0x%02X>" % b for b in range(256)]
SPECIAL_PIECES = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *BYTE_PIECES]


class Tokenizer:
    """Text to tokens and back.

    `pieces[t]` are the bytes of token t and `scores[t]` its merge score: the higher, the earlier.
    """

    bos, eos = BOS, EOS

    def __init__(self, pieces: Sequence[bytes], scores: Sequence[float]) -> None:
        if len(pieces) != len(scores):
            raise TokenizerError(f"a vocabulary needs one score for each piece, not "
                                 f"{len(scores)} for {len(pieces)}")
        if list(pieces[FIRST_BYTE:SPECIAL]) != BYTE_PIECES:
            raise TokenizerError("tokens 3 to 258 of a vocabulary must be the raw bytes <0x00> to "
                                 "<0xFF>; export the tokenizer in llama2.c's format")
        self.pieces = list(pieces)
        self.scores = list(scores)
        self._ids: dict[bytes, int] = {}
        for token, piece in enumerate(self.pieces):
            self._ids.setdefault(piece, token)

    def __len__(self) -> int:
        return len(self.pieces)

    def fits(self, vocabulary: int) -> bool:
        """Whether a model of so many tokens is of this vocabulary."""
        return len(self) == vocabulary

    @classmethod
    def load(cls, path: str | Path, vocab_size: int | None = None) -> "Tokenizer":
        """Reads a vocabulary file; `vocab_size`, where given, is what a model demands."""
        try:
            data = Path(path).read_bytes()
        except OSError as e:
            raise TokenizerError(f"cannot read the vocabulary {path}: {e.strerror}") from e
        return cls.from_bytes(data, path, vocab_size)

    @classmethod
    def from_bytes(cls, data: bytes, path: str | Path,
                   vocab_size: int | None = None) -> "Tokenizer":
        """Reads the content of a vocabulary file; `path` is what error messages call it."""
        pieces, scores, at = [], [], 4
        while at < len(data):
            head = data[at:at + 8]
            if len(head) < 8:
                raise TokenizerError(_cut(path, len(pieces), len(data)))
            score, length = struct.unpack("<fi", head)
            if not 0 <= length <= _LONGEST or not math.isfinite(score):
                raise TokenizerError(f"{path} is not a llama2.c vocabulary: token {len(pieces)} "
                                     f"has the length {length} and the score {score}")
            at += 8 + length
            if at > len(data):
                raise TokenizerError(_cut(path, len(pieces), len(data)))
            pieces.append(data[at - length:at])
            scores.append(score)
        if vocab_size is not None and len(pieces) != vocab_size:
            raise TokenizerError(f"{path} has {len(pieces)} tokens, but the model has "
                                 f"{vocab_size}; use the vocabulary that it was trained with")
        if len(pieces) < SPECIAL:
            raise TokenizerError(f"{path} has {len(pieces)} tokens, but a llama2.c vocabulary has "
                                 f"at least {SPECIAL}")
        return cls(pieces, scores)

    def save(self, path: str | Path) -> None:
        """Writes the vocabulary in the format that `load` reads."""
        Path(path).write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of a vocabulary file."""
        parts = [struct.pack("<i", max(map(len, self.pieces)))]
        for piece, score in zip(self.pieces, self.scores, strict=True):
            parts.append(struct.pack("<fi", score, len(piece)) + piece)
        return b"".join(parts)

    def encode(self, text: str, *, bos: bool = True, limit: int | None = None) -> list[int]:
        """Tokens of a text, after BOS unless `bos` is false; at most `limit`, the first ones.

        As in SentencePiece and llama2.c, a text begins with a space that is not written: its first
        word then is the same token as everywhere else. Characters without a piece of their own
        become raw bytes.
        """
        tokens = self.merge(" " + text) if text else []
        return ([BOS, *tokens] if bos else tokens)[:limit]

    def merge(self, text: str) -> list[int]:
        """Tokens of a text as it stands: the best adjacent pair merges first, the left of equals.

        A doubly linked list of tokens and a heap of candidate merges: O(n log n).
        """
        tokens: list[int] = []
        for character in text:
            piece = character.encode("utf-8", "surrogatepass")
            token = self._ids.get(piece)
            tokens.extend([FIRST_BYTE + b for b in piece] if token is None else [token])
        n = len(tokens)
        before, after = list(range(-1, n - 1)), list(range(1, n + 1))
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(i: int, j: int) -> None:
            merged = self._ids.get(self.pieces[tokens[i]] + self.pieces[tokens[j]])
            if merged is not None:
                heapq.heappush(heap, (-self.scores[merged], i, j, tokens[i], tokens[j]))

        for i in range(n - 1):
            offer(i, i + 1)
        while heap:
            _, i, j, left, right = heapq.heappop(heap)
            if tokens[i] != left or tokens[j] != right or after[i] != j:
                continue  # one of the two has merged with another neighbour since
            tokens[i] = self._ids[self.pieces[left] + self.pieces[right]]
            tokens[j] = -1
            after[i] = after[j]
            if after[i] < n:
                before[after[i]] = i
                offer(i, after[i])
            if before[i] >= 0:
                offer(before[i], i)
        return [t for t in tokens if t >= 0]

    def piece(self, previous: int, token: int) -> bytes:
        """What a token writes after another: one step of a text that appears as it is generated.

        BOS and EOS write nothing; after BOS, the leading space that `encode` added is dropped. A
        character may be spread over several byte tokens, hence bytes and not text.
        """
        if not 0 <= token < len(self.pieces):
            raise TokenizerError(f"a token must be one of 0 to {len(self.pieces) - 1}, not {token}")
        if token in (BOS, EOS):
            return b""
        if FIRST_BYTE <= token < SPECIAL:
            return bytes([token - FIRST_BYTE])
        piece = self.pieces[token]
        return piece[1:] if previous == BOS and piece.startswith(b" ") else piece

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of a whole sequence of tokens, with or without BOS in front."""
        text, previous = b"", BOS
        for token in tokens:
            text += self.piece(previous, int(token))
            previous = int(token)
        return text.decode("utf-8", "replace")


def _cut(path: Path, token: int, size: int) -> str:
    return f"{path} is truncated: its {size} bytes end inside token {token}; copy it again"

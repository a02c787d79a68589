"""Text that appears token by token."""

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol


class Pieces(Protocol):
    """What is needed of a vocabulary."""

    def piece(self, previous: int, token: int) -> bytes:
        """What a token writes after another."""


class TextStream:
    """Tokens to text, one at a time; a character may be spread over several tokens.

    ``previous``: the token before the first. A token returns the characters that it completes.
    """

    def __init__(self, vocabulary: Pieces, previous: int) -> None:
        self._vocabulary, self._previous = vocabulary, previous
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that a token adds."""
        piece = self._vocabulary.piece(self._previous, token)
        self._previous = token
        return self._decoder.decode(piece)

    def close(self) -> str:
        """What is left of a character that never became complete."""
        return self._decoder.decode(b"", final=True)


def ends_with(
    vocabulary: Pieces, previous: int, texts: Sequence[str]
) -> Callable[[Sequence[int]], bool] | None:
    """Tells whether tokens behind ``previous`` have written one of ``texts``; None without any."""
    wanted = [text.encode() for text in texts]
    if not wanted:
        return None

    def ends(tokens: Sequence[int]) -> bool:
        pairs = zip([previous, *tokens[:-1]], tokens, strict=True)
        written = b"".join(vocabulary.piece(a, b) for a, b in pairs)
        return any(text in written for text in wanted)

    return ends

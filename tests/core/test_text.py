from systolith.text import TextStream, ends_with


class Vocabulary:
    """Token 0 writes nothing, behind it a leading space is dropped."""

    pieces = (b"", b" a", "é".encode()[:1], "é".encode()[1:], b"b\n")

    def piece(self, previous: int, token: int) -> bytes:
        piece = self.pieces[token]
        return piece.removeprefix(b" ") if previous == 0 else piece


def test_characters_appear_when_they_are_complete():
    stream = TextStream(Vocabulary(), 0)
    assert [stream.push(token) for token in (1, 2, 3, 1, 2)] == ["a", "", "é", " a", ""]
    assert stream.close() == "\N{REPLACEMENT CHARACTER}"


def test_ends_across_tokens():
    assert ends_with(Vocabulary(), 0, []) is None
    ends = ends_with(Vocabulary(), 0, ["éb", "zz"])
    assert [ends((1, 2, 3, 4)[:n]) for n in range(1, 5)] == [False, False, False, True]
    assert not ends_with(Vocabulary(), 0, [" a"])([1])
    assert ends_with(Vocabulary(), 1, [" a"])([1])

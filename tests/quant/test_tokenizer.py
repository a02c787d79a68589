"""The tokenizer against llama2.c's own procedure and outside facts about tok512.bin."""

import random
import struct

import pytest

from systolith.errors import TokenizerError, UserError
from systolith.quant.checkpoint import BUNDLED
from systolith.quant.tokenizer import BOS, EOS, SPECIAL, SPECIAL_PIECES, Tokenizer
from tests.models import model_file

WORDS = [b" ", b"a", b"b", b"c", "é".encode(), b"ab", b"bc", b" a", b"abc", b" ab", b"aa", b"aaaa"]


def make(pieces=tuple(WORDS)) -> Tokenizer:
    return Tokenizer([*SPECIAL_PIECES, *pieces],
                     [0.0] * SPECIAL + [-float(i) for i in range(len(pieces))])


def naive(tokenizer: Tokenizer, text: str) -> list[int]:
    """llama2.c's encoder: look for the best pair from the left, merge it, start again."""
    ids = {}
    for token, piece in enumerate(tokenizer.pieces):
        ids.setdefault(piece, token)
    tokens = []
    for character in " " + text if text else "":
        piece = character.encode()
        tokens += [ids[piece]] if piece in ids else [3 + b for b in piece]
    while True:
        best, where = float("-inf"), None
        for i in range(len(tokens) - 1):
            token = ids.get(tokenizer.pieces[tokens[i]] + tokenizer.pieces[tokens[i + 1]])
            if token is not None and tokenizer.scores[token] > best:
                best, where = tokenizer.scores[token], (i, token)
        if where is None:
            return [BOS, *tokens]
        i, token = where
        tokens[i:i + 2] = [token]


@pytest.mark.parametrize("seed", range(20))
def test_merging_is_llama2c_s(seed):
    print(f"seed {seed}")
    rng = random.Random(seed)
    order = WORDS[:]
    rng.shuffle(order)  # other scores, other merges
    tokenizer = make(order)
    for _ in range(30):
        text = "".join(rng.choice("aaabbc é\n") for _ in range(rng.randrange(40)))
        assert tokenizer.encode(text) == naive(tokenizer, text), repr(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_bundled_vocabulary_merges_alike():
    tokenizer = Tokenizer.load(BUNDLED / "tokenizer.bin", 512)
    text = 'The "if" statement\n******************\n\nif_stmt ::= "if" …\n   elif   "ünk" ----\n'
    assert tokenizer.encode(text) == naive(tokenizer, text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_known_tokens_of_tok512():
    tokenizer = Tokenizer.load(model_file("tok512.bin"), 512)
    # The encoding that other programs publish for this vocabulary.
    assert tokenizer.encode("Once upon a time") == [1, 403, 407, 261, 378]
    assert tokenizer.decode([1, 403, 407, 261, 378]) == "Once upon a time"


def test_spaces_bytes_and_control_tokens():
    tokenizer = make()
    space, a, ab = (tokenizer.pieces.index(p) for p in (b" ", b"a", b" ab"))
    assert tokenizer.encode("") == [BOS]
    assert tokenizer.encode("ab") == [BOS, ab]
    assert tokenizer.encode("ab", bos=False) == [ab]
    assert tokenizer.merge("a") == [a]
    assert tokenizer.encode("\n") == [BOS, space, 3 + 10]
    assert tokenizer.encode("ü") == [BOS, space, 3 + 0xC3, 3 + 0xBC]
    assert tokenizer.piece(BOS, ab) == b"ab"
    assert tokenizer.piece(ab, ab) == b" ab"
    assert tokenizer.piece(ab, 3 + 0xC3) == b"\xc3"
    assert tokenizer.piece(ab, BOS) == tokenizer.piece(ab, EOS) == b""
    assert tokenizer.decode([BOS, ab, BOS, ab, EOS]) == "abab"
    assert tokenizer.decode([3 + 0xC3]) == "\N{REPLACEMENT CHARACTER}"
    with pytest.raises(TokenizerError, match="a token must be one of 0 to 270, not 271"):
        tokenizer.piece(BOS, 271)


def test_a_saved_vocabulary_loads_again(tmp_path):
    tokenizer = make()
    tokenizer.save(tmp_path / "tok.bin")
    again = Tokenizer.load(tmp_path / "tok.bin", len(tokenizer))
    assert (again.pieces, again.scores) == (tokenizer.pieces, tokenizer.scores)
    assert (tmp_path / "tok.bin").read_bytes()[:4] == struct.pack("<i", 6)


def test_saving_reproduces_tok512(tmp_path):
    path = model_file("tok512.bin")
    Tokenizer.load(path).save(tmp_path / "tok.bin")
    assert (tmp_path / "tok.bin").read_bytes() == path.read_bytes()


def refusal(path, *args) -> str:
    with pytest.raises(UserError) as e:
        Tokenizer.load(path, *args)
    return str(e.value)


def test_a_vocabulary_that_is_none_is_refused(tmp_path):
    path = tmp_path / "tok.bin"
    assert refusal(path) == f"cannot read the vocabulary {path}: No such file or directory"
    make().save(path)
    whole = path.read_bytes()
    assert refusal(path, 512) == (f"{path} has 271 tokens, but the model has 512; use the "
                                  f"vocabulary that it was trained with")
    path.write_bytes(whole[:-1])
    assert refusal(path) == (f"{path} is truncated: its {len(whole) - 1} bytes end inside token "
                             f"270; copy it again")
    path.write_bytes(whole + b"abc")
    assert refusal(path) == (f"{path} is truncated: its {len(whole) + 3} bytes end inside token "
                             f"271; copy it again")
    path.write_bytes(b"")
    assert refusal(path) == (f"{path} has 0 tokens, but a llama2.c vocabulary has at least 259")
    path.write_bytes(b"{\"version\": \"1.0\", \"truncation\": null}")
    assert refusal(path).startswith(f"{path} is not a llama2.c vocabulary: token 0 has the length ")
    path.write_bytes(whole.replace(b"<0x0A>", b"<0x0B>"))
    assert refusal(path) == ("tokens 3 to 258 of a vocabulary must be the raw bytes <0x00> to "
                             "<0xFF>; export the tokenizer in llama2.c's format")
    with pytest.raises(TokenizerError, match="needs one score for each piece, not 3 for 271"):
        Tokenizer(make().pieces, [0.0] * 3)

"""Vocabularies in Hugging Face's formats: WordPiece, byte-level and SentencePiece-like."""

import struct
import sys

import pytest

from systolith.errors import TokenizerError
from systolith.quant.tokenizer import SPECIAL_PIECES, Tokenizer
from systolith.quant.tokenizer_json import JsonTokenizer
from systolith.quant.vocabulary import is_json, load_tokenizer, tokenizer_from_bytes
from tests.quant.foreign import vocab_txt, wordpiece

tokenizers = pytest.importorskip("tokenizers")
TEXTS = ["", "abc", "Hello, world!", "naïve café 東京 🙂 \t x", "the cat   sat\non it."]


def byte_level() -> JsonTokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(["the cat sat on the mat"] * 9, trainer)
    return JsonTokenizer(made.to_str(), "test")


def sentencepiece() -> JsonTokenizer:
    """As the Llamas' files are: a low line for a space, and raw bytes."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"abcest",
             "ca", "cat", "▁cat", "▁a"]
    merges = [("c", "a"), ("ca", "t"), ("▁", "cat"), ("▁", "a")]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(
        {word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True))
    made.normalizer = tokenizers.normalizers.Sequence([
        tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")])
    d = tokenizers.decoders
    made.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return JsonTokenizer(made.to_str(), "test")


def spelled(tokenizer, tokens: list[int]) -> str:
    """What `piece` writes, token after token."""
    previous, text = tokens[0], b""
    for token in tokens[1:]:
        text += tokenizer.piece(previous, token)
        previous = token
    return text.decode()


def test_wordpiece():
    t = wordpiece(50)
    assert (len(t), t.bos, t.eos) == (50, 2, 3)
    assert t.encode("A cat, ab") == [2, 5, 20, 1, 5, 19, 3]
    assert t.encode("ab", bos=False) == [5, 19]
    assert t.encode("") == [2, 3]
    assert t.encode("a a a a", limit=4) == [2, 5, 5, 3]
    assert t.encode("a a a a", bos=False, limit=3) == [5, 5, 5]
    assert len(t.encode("a a a a")) == 6                       # the limit does not stay
    assert t.encode("a\udc80 b") == t.encode("a? b")           # bytes of a terminal in no encoding
    assert t.decode([2, 5, 20, 19, 3]) == "a catb"
    assert spelled(t, [2, 5, 20, 19, 3]) == "a catb"
    with pytest.raises(TokenizerError) as e:
        t.encode("a", limit=1)
    assert str(e.value) == ("limit must be at least 2, not 1: so many tokens begin and end a text")
    for token in (-1, 50):
        with pytest.raises(TokenizerError) as e:
            t.piece(5, token)
        assert str(e.value) == f"a token must be one of 0 to 49, not {token}"


def test_padding_and_truncation_of_the_file_are_ours_to_decide():
    inner = tokenizers.Tokenizer.from_str(wordpiece(50).to_bytes().decode())
    inner.enable_padding(length=12)
    inner.enable_truncation(3)
    t = JsonTokenizer(inner.to_str(), "test")
    assert t.encode("a a a") == [2, 5, 5, 5, 3]


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level(text):
    t = byte_level()
    assert t.bos == t.eos == 0
    tokens = t.encode(text)
    assert t.decode(tokens) == text
    assert spelled(t, [t.bos, *tokens, t.eos]) == text


@pytest.mark.parametrize("text", ["a cat", "cats", "", "naïve 🙂"])
def test_sentencepiece(text):
    t = sentencepiece()
    assert (t.bos, t.eos) == (1, 2)
    tokens = t.encode(text)
    assert tokens[0] == t.bos and t.encode(text, bos=False) == tokens[1:]
    assert t.decode(tokens) == text
    assert spelled(t, [*tokens, t.eos]) == text


@pytest.mark.parametrize("make", [lambda: wordpiece(50), byte_level, sentencepiece])
def test_bytes_say_what_they_are(make, tmp_path):
    t = make()
    data = t.to_bytes()
    assert is_json(data)
    again = tokenizer_from_bytes(data, "here")
    assert isinstance(again, JsonTokenizer) and again.to_bytes() == data
    assert again.encode("a cat") == t.encode("a cat")
    t.save(tmp_path / "any.name")
    assert load_tokenizer(tmp_path / "any.name", len(t)).to_bytes() == data
    assert len(load_tokenizer(tmp_path / "any.name", len(t) + 9)) == len(t)   # padded embeddings


@pytest.mark.parametrize("longest", [122, 123, 32123])
def test_a_llama2c_vocabulary_is_not_mistaken(longest):
    pieces = [*SPECIAL_PIECES, b"a" * longest]
    data = Tokenizer(pieces, [0.0] * len(pieces)).to_bytes()
    assert struct.unpack_from("<i", data) == (longest,) and not is_json(data)
    assert tokenizer_from_bytes(data, "here").pieces == pieces


def test_vocab_txt(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text(vocab_txt(40))
    t = load_tokenizer(path, 40)
    assert len(t) == 40 and t.encode("CAT") == [2, 20, 3]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(path).encode("CAT") == [2, 1, 3]
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert refusal(path).startswith(
        f"cannot read {tmp_path / 'tokenizer_config.json'}, which must describe the tokenizer: ")
    (tmp_path / "tokenizer_config.json").unlink()
    path.write_text("[UNK]\n[CLS]\na\n")
    assert refusal(path) == f"{path} is not the vocabulary of a BERT: it lacks [SEP]"
    path.write_bytes(b"\xff\n")
    assert refusal(path) == f"{path} is not the vocabulary of a BERT: it is not UTF-8"


def refusal(path, *args) -> str:
    with pytest.raises(TokenizerError) as e:
        load_tokenizer(path, *args)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "tokenizer.json"
    assert refusal(path) == f"cannot read the vocabulary {path}: No such file or directory"
    for text in ("{", "{}", '{"model": 3}'):
        path.write_text(text)
        message = refusal(path)
        assert message.startswith(f"{path} is not a tokenizer.json ("), message
        assert message.endswith("; save the tokenizer in that format")
    path.write_bytes(b'{"\xff\xff"')
    assert refusal(path) == f"{path} is not a tokenizer.json: it is not UTF-8"
    wordpiece(50).save(path)
    assert refusal(path, 49) == (f"{path} has 50 tokens, but the model has 49; use the vocabulary "
                                 f"that it was trained with")


def test_without_the_library(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    wordpiece(50).save(path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert refusal(path) == (f'{path} needs the library tokenizers; '
                             f'pip install "systolith[models]"')

"""A tokenizer in Hugging Face's format: tokenizer.json, or the vocab.txt of a BERT.

The library `tokenizers` (extra "models") does the work; it is imported when a vocabulary is read.
The interface is that of `tokenizer.Tokenizer`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from systolith.errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers

BEGIN = ("[CLS]", "<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>")
END = ("[SEP]", "</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>")
"""What the tokens that begin and end a text are called, the most telling name first."""


class JsonTokenizer:
    """Text to tokens and back; ``content`` is that of a tokenizer.json, ``path`` for messages.

    ``bos``, ``eos``: tokens that begin and end a text, known by their names (`BEGIN`, `END`); None
    where the vocabulary has none of those names.
    """

    def __init__(self, content: str, path: str | Path) -> None:
        library = _library(path)
        self._content = content
        try:
            description = json.loads(content)
            self._tokenizer: tokenizers.Tokenizer = library.Tokenizer.from_str(content)
        except Exception as e:  # the library raises nothing narrower
            raise TokenizerError(f"{path} is not a tokenizer.json ({e}); save the tokenizer in "
                                 f"that format") from e
        # A file may ask for a fixed length, padded: here a text has the length that it has.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._pieces = _pieces_of(description.get("decoder"))
        self._special = {token["id"] for token in description.get("added_tokens", ())
                         if token.get("special")}
        self.bos, self.eos = self._first(BEGIN), self._first(END)

    def _first(self, names: Sequence[str]) -> int | None:
        tokens = (self._tokenizer.token_to_id(name) for name in names)
        return next((token for token in tokens if token is not None), None)

    def __len__(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def fits(self, vocabulary: int) -> bool:
        """Whether a model of so many tokens has one for each here; embeddings may be padded."""
        return len(self) <= vocabulary

    @classmethod
    def load(cls, path: str | Path, vocab_size: int | None = None) -> "JsonTokenizer":
        """Reads a tokenizer.json, or a vocab.txt with the tokenizer_config.json beside it.

        ``vocab_size``, where given, is what a model demands. TokenizerError where that is
        impossible.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as e:
            raise TokenizerError(f"cannot read the vocabulary {path}: {e.strerror}") from e
        if Path(path).suffix == ".txt":
            data = wordpiece_json(data, path, _settings(Path(path))).encode()
        return cls.from_bytes(data, path, vocab_size)

    @classmethod
    def from_bytes(cls, data: bytes, path: str | Path,
                   vocab_size: int | None = None) -> "JsonTokenizer":
        """Reads the content of a tokenizer.json; ``path`` is what error messages call it."""
        try:
            made = cls(data.decode("utf-8"), path)
        except UnicodeDecodeError as e:
            raise TokenizerError(f"{path} is not a tokenizer.json: it is not UTF-8") from e
        if vocab_size is not None and not made.fits(vocab_size):
            raise TokenizerError(f"{path} has {len(made)} tokens, but the model has "
                                 f"{vocab_size}; use the vocabulary that it was trained with")
        return made

    def save(self, path: str | Path) -> None:
        """Writes a tokenizer.json."""
        Path(path).write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of a tokenizer.json, as it was read."""
        return self._content.encode()

    def encode(self, text: str, *, bos: bool = True, limit: int | None = None) -> list[int]:
        """Tokens of a text, with those that begin and end it ([CLS] ... [SEP]) unless not ``bos``.

        ``limit``: at most so many tokens; what is cut off is text, not the token that ends it.
        """
        if limit is None:
            self._tokenizer.no_truncation()
        else:
            special = self._tokenizer.num_special_tokens_to_add(False) if bos else 0
            if limit < special:
                raise TokenizerError(f"limit must be at least {special}, not {limit}: so many "
                                     f"tokens begin and end a text")
            self._tokenizer.enable_truncation(limit)
        text = text.encode("utf-8", "replace").decode()  # the library takes no lone surrogates
        return self._tokenizer.encode(text, add_special_tokens=bos).ids

    def piece(self, previous: int, token: int) -> bytes:
        """What a token writes after another: one step of a text that appears as it is generated.

        Special tokens write nothing. A character may be spread over several tokens, hence bytes.
        """
        spelled = self._tokenizer.id_to_token(token) if 0 <= token < len(self) else None
        if spelled is None:
            raise TokenizerError(f"a token must be one of 0 to {len(self) - 1}, not {token}")
        if token in self._special:
            return b""
        return self._pieces(spelled, previous in self._special)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of a whole sequence of tokens, without the special ones."""
        return self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=True)


def _library(path: str | Path) -> Any:
    try:
        import tokenizers
    except ImportError as e:
        raise TokenizerError(f"{path} needs the library tokenizers; "
                             f'pip install "systolith[models]"') from e
    return tokenizers


def _settings(path: Path) -> dict[str, Any]:
    """The tokenizer_config.json beside a vocab.txt; {} where there is none."""
    path = path.with_name("tokenizer_config.json")
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as e:
        raise TokenizerError(f"cannot read {path}, which must describe the tokenizer: {e}") from e


def wordpiece_json(data: bytes, path: str | Path, settings: Mapping[str, Any]) -> str:
    """The tokenizer.json of a BERT's vocab.txt: a token on each line, the first one is 0.

    ``settings``: of tokenizer_config.json; by default texts are made lower-case.
    """
    library = _library(path)
    try:
        # Not splitlines: a token may be one of the characters at which that splits.
        words = data.decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as e:
        raise TokenizerError(f"{path} is not the vocabulary of a BERT: it is not UTF-8") from e
    tokens = {word: token for token, word in enumerate(words)}
    missing = [name for name in ("[UNK]", "[CLS]", "[SEP]") if name not in tokens]
    if missing:
        raise TokenizerError(f"{path} is not the vocabulary of a BERT: it lacks {missing[0]}")
    made = library.Tokenizer(library.models.WordPiece(tokens, unk_token="[UNK]"))
    made.normalizer = library.normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True), strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True))
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    made.decoder = library.decoders.WordPiece()
    made.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokens[name]) for name in ("[CLS]", "[SEP]")])
    made.add_special_tokens([name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
                             if name in tokens])
    return made.to_str()


# How a token is spelled -----------------------------------------------------------------------

def _pieces_of(decoder: dict[str, Any] | None) -> Any:
    """(spelling, first of the text) -> bytes that it writes, for the decoder of a vocabulary."""
    steps = (decoder or {}).get("decoders", [decoder or {}])
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return lambda spelled, first: _of_byte_level(spelled)
    if "WordPiece" in kinds:
        return _of_wordpiece
    return _of_sentencepiece


def _of_wordpiece(spelled: str, first: bool) -> bytes:
    inside = spelled.startswith("##")
    return (spelled[2:] if inside else spelled if first else f" {spelled}").encode()


def _of_sentencepiece(spelled: str, first: bool) -> bytes:
    """A low line begins a word; <0x0A> is a raw byte."""
    if re.fullmatch("<0x[0-9A-F]{2}>", spelled):
        return bytes([int(spelled[3:5], 16)])
    text = spelled.replace("\u2581", " ")
    return (text[1:] if first and text.startswith(" ") else text).encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: itself where it can be seen, otherwise one from 256 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = (b for b in range(256) if b not in visible)
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTES = _byte_alphabet()


def _of_byte_level(spelled: str) -> bytes:
    # An added token is spelled in plain text, which may have other characters.
    return b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in spelled)

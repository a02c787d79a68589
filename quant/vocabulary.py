"""The two kinds of vocabulary under one roof: llama2.c's and Hugging Face's.

Both have the same interface; an artifact holds the bytes of either, and which they are shows in the
content.
"""

from pathlib import Path

from systolith.errors import TokenizerError
from systolith.quant.tokenizer import Tokenizer
from systolith.quant.tokenizer_json import JsonTokenizer

AnyTokenizer = Tokenizer | JsonTokenizer


def is_json(data: bytes) -> bool:
    """Whether a vocabulary is a tokenizer.json.

    llama2.c's begins with the length of its longest piece, which may well be 123, the code of a
    brace; but as an int32 it has zeros in it, and JSON has none.
    """
    return data.lstrip()[:1] == b"{" and 0 not in data[:4]


def load_tokenizer(path: str | Path, vocab_size: int | None = None) -> AnyTokenizer:
    """Reads tokenizer.json, vocab.txt or llama2.c's format; TokenizerError where it is none.

    ``vocab_size``, where given, is what a model demands.
    """
    path = Path(path)
    if path.suffix == ".txt":
        return JsonTokenizer.load(path, vocab_size)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise TokenizerError(f"cannot read the vocabulary {path}: {e.strerror}") from e
    return tokenizer_from_bytes(data, path, vocab_size)


def tokenizer_from_bytes(data: bytes, path: str | Path,
                         vocab_size: int | None = None) -> AnyTokenizer:
    """The content of a vocabulary file; ``path`` is what messages call it. Of ``to_bytes``, the
    inverse."""
    kind = JsonTokenizer if is_json(data) else Tokenizer
    return kind.from_bytes(data, path, vocab_size)

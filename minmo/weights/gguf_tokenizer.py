"""The byte-level BPE tokenizer inside a GGUF file, as a `tokenizer.json` of its own."""

import json
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from minmo.weights.errors import WeightsError

_CONTROL = 3  # the GGUF token type of special tokens
_SUPPORTED = ("gpt2", "smollm")


def field(reader: GGUFReader, key: str) -> Any:
    """Return a metadata value of the file.

    Raises:
        WeightsError: the file has no such key.
    """
    found = reader.get_field(key)
    if found is None:
        raise WeightsError(f"the GGUF file has no metadata key {key!r}; fetch it again")
    return found.contents()


def write_tokenizer(reader: GGUFReader, folder: Path) -> None:
    """Write the tokenizer into an existing folder, the chat template in `tokenizer_config.json`.

    Raises:
        WeightsError: the file's tokenizer is of another kind than SmolLM's.
    """
    kind = (field(reader, "tokenizer.ggml.model"), field(reader, "tokenizer.ggml.pre"))
    if kind != _SUPPORTED:
        raise WeightsError(
            f"the GGUF file's tokenizer is {kind}, this converter reads {_SUPPORTED}"
        )
    tokens: list[str] = field(reader, "tokenizer.ggml.tokens")
    types: list[int] = field(reader, "tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    merges = [tuple(merge.split(" ", 1)) for merge in field(reader, "tokenizer.ggml.merges")]
    build_tokenizer(tokens, merges, special).save(str(folder / "tokenizer.json"))

    def named(role: str) -> str:
        return tokens[int(field(reader, f"tokenizer.ggml.{role}_token_id"))]

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": named("bos"),
        "eos_token": named("eos"),
        "unk_token": named("unknown"),
        "pad_token": named("padding"),
        "model_max_length": int(field(reader, "llama.context_length")),
        "chat_template": field(reader, "tokenizer.chat_template"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def build_tokenizer(
    tokens: list[str], merges: list[tuple[str, ...]], special: list[str]
) -> Tokenizer:
    """Build SmolLM's tokenizer: digits one by one, then GPT-2's words, then byte-level BPE.

    Args:
        tokens: the vocabulary; a token's place is its id.
        merges: pairs of tokens in the order in which they merge.
        special: tokens that text matches as a whole and that decoding may skip.
    """
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [(merge[0], merge[1]) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer

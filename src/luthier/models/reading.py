"""What of a model is read before its weights: its configuration and its tokenizer. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import EnvironmentProblem, UserError, excerpt
from luthier.models import architectures
from luthier.models.folder import native_type
from luthier.models.settings import read_json, refuse_methods
from luthier.system.faults import damage_told, raise_fault

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")


def load_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model's configuration.

    Raises:
        UserError: transformers does not know the architecture, or a value is wrong, there or in what it says of generation.
    """
    from transformers import AutoConfig, GenerationConfig, PretrainedConfig

    file, generation = folder / "config.json", folder / "generation_config.json"
    refuse_methods(read_json(file, str(folder)), file, PretrainedConfig)
    if generation.is_file():
        refuse_methods(read_json(generation, str(folder)), generation, GenerationConfig)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise_fault(file, error)
        raise UserError(
            str(file),
            f"transformers cannot use it: {excerpt(str(error), 200)}",
            "an architecture that this version knows",
            "pip install -U transformers, or another model",
        ) from error


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; never asks on stdin.

    Raises:
        UserError: there is none, it is damaged, or it has ids beyond the model's vocabulary.
        EnvironmentProblem: it needs a package that is not installed.
    """
    from transformers import AutoTokenizer

    native = native_type(folder)

    def damaged(error: Exception) -> UserError:
        found = f"the tokenizer cannot be loaded: {excerpt(str(error), 200)}"
        return UserError(str(folder), found, "tokenizer.json, whole", "download the model again")

    try:
        with damage_told(folder, damaged):
            if native:
                tokenizer = architectures.tokenizer_class(native).from_pretrained(folder)
            else:
                tokenizer = AutoTokenizer.from_pretrained(
                    folder, trust_remote_code=trust_remote_code, local_files_only=True
                )
    except ImportError as error:
        raise_fault(folder, error)
        raise EnvironmentProblem(
            str(folder), excerpt(str(error), 200), "the package that this tokenizer needs", install(error)
        ) from error
    if (folder / "config.json").is_file():
        check_vocabulary(load_config(folder, trust_remote_code), tokenizer, str(folder))
    return tokenizer


def context_length(config: PretrainedConfig) -> int | None:
    """The most tokens that the model was made for; None where its config sets no bound (ALiBi, state-space models)."""
    text = config.get_text_config()
    found = [value for key in _CONTEXT_KEYS if isinstance(value := getattr(text, key, None), int) and value > 0]
    return found[0] if found else None


def install(error: ImportError) -> str:
    """What is to be typed where a package is missing."""
    return f"pip install {error.name}" if error.name else "pip install the package that is named"


def check_vocabulary(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuses a tokenizer with ids that the model has no embedding for (they would fail, or read another row, in
    training), and one with a special token that is another token as well."""
    vocabulary = tokenizer.get_vocab()
    special = {vocabulary[token]: token for token in tokenizer.all_special_tokens if token in vocabulary}
    for token, number in vocabulary.items():
        if number in special and special[number] != token:
            raise UserError(
                f"{where}/tokenizer.json",
                f"{excerpt(special[number], 40)} and {excerpt(token, 40)} are both id {number}",
                "an id of its own for each special token",
                "copy the tokenizer's files from the model that this one was made of",
            )
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is None or not vocabulary:
        return
    token, largest = max(vocabulary.items(), key=lambda item: item[1])
    if largest >= rows:
        raise UserError(
            where,
            f"the tokenizer has id {largest} ({excerpt(token, 40)}), the model {rows} rows of embeddings",
            f"ids below {rows}",
            "the tokenizer that belongs to this model, or a model whose embeddings were resized for it",
        )


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> dict[str, int]:
    """`tokens` and the ids that the tokenizer now has for them; it reads them whole wherever they stand in a text.

    Raises:
        UserError: one is no new token.
    """
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    for index, token in enumerate(tokens):
        if token in known or token in tokens[:index]:
            raise UserError(
                "data.add_tokens",
                f"{excerpt(token)} is a token already" if token in known else f"{excerpt(token)} stands there twice",
                "tokens that the tokenizer does not have",
                f"leave {excerpt(token)} out",
            )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    return {token: tokenizer.convert_tokens_to_ids(token) for token in tokens}

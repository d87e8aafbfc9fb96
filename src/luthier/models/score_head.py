"""A head that gives a document one number, laid out as transformers' sequence classification lays it out.

Such a model is the decoder and `score`, a linear layer without bias and with one output; the number is that of the last token.
It has no head of words.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from luthier.errors import UserError
from luthier.models.folder import tensors
from luthier.models.settings import read_json
from luthier.randomness import key

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCORE = "score"
WEIGHT = f"{SCORE}.weight"
LAYOUT = "ForSequenceClassification"
"""How the names of transformers' classes of this layout end."""


def gives_scores(model: Any) -> bool:
    """Whether a model of transformers or peft has this head and none of words."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    return hasattr(core, SCORE) and core.get_output_embeddings() is None


def head_weights(model: Any) -> set[int]:
    """The ids of the parameters of this head, with its copies in an adapter; none of a model of words."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {id(parameter) for parameter in core.score.parameters()} if gives_scores(model) else set()


def stored_as_scores(folder: Path, name: str) -> bool:
    """Whether a model's folder says that it has this layout."""
    named = read_json(folder / "config.json", name).get("architectures")
    return isinstance(named, list) and any(str(one).endswith(LAYOUT) for one in named)


def stores_a_head(folder: Path, name: str) -> bool:
    """Whether the files of a model hold such a head: then training goes on from it."""
    return any(tensor.name == WEIGHT for tensor in tensors(folder, name))


def refuse_without_scores(config: Any, name: str) -> None:
    """Before a model is loaded.

    Raises:
        UserError: transformers has no class of this layout for the architecture.
    """
    from transformers import AutoModelForSequenceClassification

    known = AutoModelForSequenceClassification._model_mapping
    code = getattr(config, "auto_map", None) or {}
    if type(config) not in known and AutoModelForSequenceClassification.__name__ not in code:
        raise UserError(
            name,
            f"transformers has no {LAYOUT} of {config.model_type}, in which a reward model is written",
            "an architecture that has one, as most have",
            "another model.path for objective reward",
        )


def refuse_another_head(model: PreTrainedModel, name: str) -> None:
    """Raises UserError where a model's head is not the one of this layout: a linear layer `score` with one output, without bias."""
    head = getattr(model, SCORE, None)
    if not (isinstance(head, nn.Linear) and head.bias is None and head.out_features == 1):
        raise UserError(
            name,
            f"the head of {type(model).__name__} is {head if head is not None else 'of another name'}",
            f"{SCORE}, a linear layer with one output and without bias",
            "another model.path for objective reward",
        )


@torch.no_grad()
def read_head(model: Any, folder: Path, name: str) -> None:
    """Takes the head from the files once more, where they have one: loaded with the other weights it was rounded to their type."""
    from safetensors import safe_open

    for tensor in tensors(folder, name):
        if tensor.name == WEIGHT and tensor.shape == tuple(model.score.weight.shape):
            with safe_open(tensor.file, "pt") as opened:
                model.score.weight.copy_(opened.get_tensor(WEIGHT))


@torch.no_grad()
def begin_head(model: Any, seed: int) -> None:
    """Draws a new head: normal numbers with the standard deviation 1 / sqrt(D + 1) (Stiennon et al., 2020, arXiv:2009.01325),
    a function of the seed alone.
    """
    weight = model.score.weight
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(key(seed, SCORE) % 2**63))
    weight.copy_(drawn / math.sqrt(weight.shape[-1] + 1))


def heads_of_words(config: Any, model: PreTrainedModel, trust_remote_code: bool) -> set[str]:
    """Names of weights that the model would have with its head of words, and `model` has not: they are left in the files."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        words = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return set(words.state_dict()) - set(model.state_dict())


def settle_padding(core: Any, tokenizer: Any, stop_ids: set[int]) -> None:
    """Gives model and tokenizer a padding token with which an answer never ends.

    transformers takes the last token that is no padding for the last one: where padding is the token at which answers end, it
    would read the score one token too early. Where there is no other special token neither has one.
    """
    names = tokenizer.special_tokens_map
    wanted = [names.get(name) for name in ("pad_token", "unk_token", "bos_token")] + sorted(tokenizer.all_special_tokens)
    ids = tokenizer.get_vocab()
    padding = next((one for one in wanted if one in ids and ids[one] not in stop_ids), None)
    tokenizer.pad_token = padding
    for config in (core.config, core.config.get_text_config()):
        config.pad_token_id = ids[padding] if padding is not None else None

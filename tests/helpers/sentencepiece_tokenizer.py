"""A SentencePiece file as a tokenizer, with the few methods of transformers' slow tokenizers that luthier uses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece


class SentencePieceTokenizer:
    """Each stretch of text between control tokens is encoded anew, as the original (legacy) tokenizers do."""

    chat_template = None
    name_or_path = ""

    def __init__(
        self, folder: Path, *, eos: str, unk: str = "<unk>", special: Sequence[str] = (), added: Sequence[str] = ()
    ) -> None:
        """`special`: pieces that are control tokens; `added`: control tokens behind the last piece."""
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        ids = {text: self.model.piece_to_id(text) for text in (eos, unk, *special)}
        ids |= {text: len(self.model) + index for index, text in enumerate(added)}
        self.ids = ids
        self.texts = {index: text for text, index in ids.items()}
        self.all_special_tokens = list(ids)
        self.added_tokens_decoder = {index: _Token(text) for text, index in ids.items()}
        self.special_tokens_map = {"eos_token": eos, "unk_token": unk}
        self.eos_token, self.unk_token, self.bos_token, self.pad_token = eos, unk, None, None
        self.eos_token_id, self.unk_token_id, self.bos_token_id, self.pad_token_id = ids[eos], ids[unk], None, None
        self.control = re.compile("(" + "|".join(map(re.escape, sorted(ids, key=len, reverse=True))) + ")")

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.ids[token] if token in self.ids else int(self.model.piece_to_id(token))

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        assert not add_special_tokens
        parts = [part for part in self.control.split(text) if part]
        return [
            index for part in parts for index in ([self.ids[part]] if part in self.ids else self.model.encode(part))
        ]

    def decode(self, ids: Sequence[int], **_options: Any) -> str:
        return "".join(self.texts.get(index) or self.model.decode([index]) for index in map(int, ids))

    def __call__(self, text: str, **_options: Any) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text)}


class _Token(str):
    special = True


def yuan(folder: Path) -> SentencePieceTokenizer:
    """Of Yuan2.0, loaded as its authors load it: <eod> ends, no BOS, and control tokens for files and commits."""
    return SentencePieceTokenizer(
        folder,
        eos="<eod>",
        special=("<sep>", "<pad>"),
        added=("<mask>", "<predict>", "<FIM_SUFFIX>", "<FIM_PREFIX>", "<FIM_MIDDLE>"),
    )


def baichuan(folder: Path) -> SentencePieceTokenizer:
    """Of Baichuan2: </s> ends; the reserved tokens are ordinary pieces for the tokenizer."""
    return SentencePieceTokenizer(folder, eos="</s>")

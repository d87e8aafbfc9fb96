"""The tokenizer of Yuan2.0: SentencePiece itself, because 57,769 of its pieces share one score, and which of them wins is
SentencePiece's own affair.

Between control tokens each stretch of text is encoded anew, with its own blank in front. The published settings add
<s> and </s> and end at </s>; the models were trained with neither, and end at <eod>.
"""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers.tokenization_python import PreTrainedTokenizer
from transformers.tokenization_utils_base import AddedToken

from luthier.models.architectures._pieces import SPACE, VOCAB_FILE, closed_by, is_of

__all__ = ["YuanTokenizer"]

CONTROL = (
    "<sep>", "<pad>", "<mask>", "<predict>", "<FIM_SUFFIX>", "<FIM_PREFIX>", "<FIM_MIDDLE>",
    "<commit_before>", "<commit_msg>", "<commit_after>",
    "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<empty_output>",
)  # fmt: skip
"""Those that are no pieces get the ids behind the last piece, in this order."""


class YuanTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    vocab_files_names = {"vocab_file": VOCAB_FILE}  # noqa: RUF012 - as transformers reads it
    model_input_names = ("input_ids", "attention_mask")
    padding_side = "right"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *others: Any, **keywords: Any) -> Any:
        if not is_of(pretrained_model_name_or_path, cls.__name__):
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, *others, **keywords)
        return super().from_pretrained(pretrained_model_name_or_path, *others, **keywords)

    def __init__(self, vocab_file: str, **settings: Any) -> None:
        self.vocab_file = vocab_file
        self.pieces = SentencePieceProcessor(model_file=str(vocab_file))
        for added in ("add_bos_token", "add_eos_token", "sp_model_kwargs", "extra_special_tokens", "auto_map"):
            settings.pop(added, None)
        if str(settings.get("eos_token", "</s>")) == "</s>":
            settings["eos_token"] = "<eod>"  # noqa: S105
        defaults = {
            "bos_token": "<s>",
            "unk_token": "<unk>",
            "pad_token": "<eod>",
            "clean_up_tokenization_spaces": False,
        }
        for name, value in defaults.items():
            settings[name] = value if settings.get(name) is None else settings[name]
        super().__init__(special_tokens_pattern="none", token_type_ids_pattern="all_zeros", **settings)  # noqa: S106
        self.add_special_tokens(
            {"extra_special_tokens": [AddedToken(t, special=True, normalized=False) for t in CONTROL]}
        )

    @property
    def vocab_size(self) -> int:
        """Of the file, without added tokens."""
        return len(self.pieces)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {self.pieces.id_to_piece(index): index for index in range(len(self.pieces))}

    def get_vocab(self) -> dict[str, int]:
        return {**self._ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **_others: Any) -> list[str]:
        found: list[str] = self.pieces.encode(text, out_type=str)
        return found

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.pieces.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        if index >= len(self.pieces):  # a row of the embeddings that only fills them up
            return str(self.unk_token)
        return str(self.pieces.id_to_piece(index))

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **_others: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(index) for index in token_ids]
        if skip_special_tokens:
            special = set(self.all_special_ids)
            ids = [index for index in ids if index not in special]
        return self.convert_tokens_to_string([self._token_of(index) for index in ids])

    def _token_of(self, index: int) -> str:
        added = self._added_tokens_decoder.get(index) if index >= len(self.pieces) else None
        return self._convert_id_to_token(index) if added is None else str(added.content)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """As the original program: the blank in front of the first token is its own, not the text's."""
        tokens = [token.removeprefix(SPACE) if place == 0 else token for place, token in enumerate(tokens)]
        return closed_by(tokens, {self.bos_token, self.eos_token, self.unk_token}, self._text_of)

    def _text_of(self, tokens: list[str]) -> str:
        """Text of tokens; those behind the last piece are written as they are."""
        text, part = "", list[str]()
        for token in tokens:
            if self._added_tokens_encoder.get(token, 0) < len(self.pieces):
                part.append(token)
                continue
            text += self.pieces.decode(part) + token
            part = []
        return text + str(self.pieces.decode(part))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        target = Path(save_directory) / (f"{filename_prefix}-{VOCAB_FILE}" if filename_prefix else VOCAB_FILE)
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)

"""The tokenizer of Baichuan2, exactly as its SentencePiece file (BPE, bytes for unknown characters, no blank in front).

The pieces become a BPE of the library tokenizers whose merges are ordered by score; what the file calls user-defined
(<reserved_106>, tags, digits of full width) is cut out of the text before, and so are <s>, </s> and <unk>.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from luthier.models.architectures._pieces import NORMAL, SPACE, USER_DEFINED, VOCAB_FILE, closed_by, is_of, pieces_in

__all__ = ["BaichuanTokenizer"]


class BaichuanTokenizer(PreTrainedTokenizerFast):  # type: ignore[misc]
    vocab_files_names = {"vocab_file": VOCAB_FILE, "tokenizer_file": "tokenizer.json"}  # noqa: RUF012 - as transformers reads it
    model_input_names = ("input_ids", "attention_mask")
    padding_side = "right"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *others: Any, **keywords: Any) -> Any:
        if not is_of(pretrained_model_name_or_path, cls.__name__):
            return PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, *others, **keywords)
        return super().from_pretrained(pretrained_model_name_or_path, *others, **keywords)

    def __init__(self, vocab_file: str | None = None, tokenizer_file: str | None = None, **settings: Any) -> None:
        for name in ("add_bos_token", "add_eos_token", "sp_model_kwargs", "use_fast", "auto_map"):
            settings.pop(name, None)
        named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
        for name, default in named.items():
            # The published settings ask for whole words, which the published program did not heed.
            settings[name] = str(settings.get(name) or default)
        settings.setdefault("clean_up_tokenization_spaces", False)
        if settings.get("tokenizer_object") is None and tokenizer_file is None:
            if vocab_file is None:
                raise ValueError(f"neither {VOCAB_FILE} nor tokenizer.json is there")
            self._tokenizer = converted(Path(vocab_file))
        super().__init__(tokenizer_file=tokenizer_file, **settings)

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **settings: Any) -> dict[str, Any]:
        """Files are read in `__init__`: the general conversion of a SentencePiece file is not exact for this one."""
        return settings

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **others: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(index) for index in token_ids]
        if skip_special_tokens:
            return str(super()._decode(ids, skip_special_tokens=True, **others))
        tokens = self.convert_ids_to_tokens(ids)  # None for a row of the embeddings that only fills them up
        return self.convert_tokens_to_string([self.unk_token if token is None else token for token in tokens])

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """As the original program."""
        named = {self.bos_token, self.eos_token, self.unk_token}
        return closed_by(tokens, named, self.backend_tokenizer.decoder.decode)


def converted(file: Path) -> Tokenizer:
    """A SentencePiece BPE file as a tokenizer of the library tokenizers, with the same ids for every text.

    Raises:
        ValueError: it is no such file.
    """
    pieces = list(pieces_in(file))
    ids = {text: index for index, (text, _, _) in enumerate(pieces)}
    normal = {text: score for text, score, kind in pieces if kind == NORMAL}
    merges = [
        (text[:cut], text[cut:])
        for text in sorted(normal, key=normal.__getitem__, reverse=True)
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))  # noqa: S106
    made.normalizer = normalizers.Replace(" ", SPACE)
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_tokens(
        [AddedToken(text, normalized=False, special=False) for text, _, kind in pieces if kind == USER_DEFINED]
    )
    made.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in ("<unk>", "<s>", "</s>")])
    return made

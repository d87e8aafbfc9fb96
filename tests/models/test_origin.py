"""What luthier writes beside a result, damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.models import adapters


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"[]", "a JSON object"),
        (b'{"base": 3}', "base"),
        (b'{"base": {"config_hash": "a"}}', "base.name"),
        (b'{"base": {"name": "m", "quantization": "nf4"}}', "base.quantization"),
        (b'{"base": {"name": "m", "quantization": {"kind": 4}}}', "base.quantization.kind"),
        (b'{"new_tokens": {"<a>": "7"}}', "new_tokens.<a>"),
        (b'{"new_tokens": {"<a>": -7}}', "new_tokens.<a>"),
        (b'{"embedding_rows": 10000000000000000000000}', "embedding_rows"),
    ],
)
def test_a_damaged_one_is_refused(text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / adapters.OURS).write_bytes(text)
    for tell in (adapters.trained_quantization, adapters.new_tokens, adapters.starts_at_base, adapters.trained_system):
        with pytest.raises(UserError) as caught:
            tell(tmp_path)
        assert said in str(caught.value)


def test_what_it_says_is_kept_whole(tmp_path: Path) -> None:
    said = {"base": {"name": "m", "commit": "c", "quantization": {"kind": "nf4", "double_quant": True}}, "run": "r"}
    adapters.write_origin(tmp_path, said)
    assert adapters.origin_of(tmp_path, {}) == {**said, "system": None}
    assert adapters.trained_quantization(tmp_path) == said["base"]["quantization"]  # type: ignore[index]

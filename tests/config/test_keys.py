"""What `luthier explain` says of keys."""

from __future__ import annotations

import pytest

from luthier.config.keys import explain, find, keys
from luthier.errors import UserError


def test_every_key_has_a_meaning_and_says_what_it_takes() -> None:
    for key in keys():
        assert key.meaning, f"{key.dotted} has no docstring"
        assert key.takes, key.dotted
        assert key.required or key.default or key.name == "training", f"{key.dotted} has no default"


def test_explain_finds_keys_by_name_and_by_path_and_other_tools_names() -> None:
    assert [key.dotted for key in find("learning_rate")] == ["training.learning_rate"]
    assert "2e-4 (lora)" in explain("training.learning_rate")
    assert "2e-5 (freeze, full)" in explain("learning_rate")
    assert "muon: Muon (Jordan, 2024)" in explain("optim")
    assert "tuning.r" in explain("lora_rank")
    assert "exit code 4" in explain("exit 4")
    assert explain("nan").startswith("NaN: ")
    assert "max_tokens_per_micro_batch" in explain("out of memory")
    assert explain("pissa").startswith("pissa is a value of tuning.init_lora_weights")
    assert explain("nf4").startswith("nf4 is a value of model.quantization")
    with pytest.raises(UserError, match="learning_rate"):
        explain("learnig_rate")

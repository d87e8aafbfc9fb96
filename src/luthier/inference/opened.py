"""A finished run, an adapter or a model, opened for use: to talk to, to score, to compare with its past."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel

from luthier import config as configuration
from luthier.component import ComponentConfig
from luthier.component import load as load_component
from luthier.config import RunConfig
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.template import Template
from luthier.errors import UserError
from luthier.inference.as_typed import TEMPLATE, named_by
from luthier.kernels.dropout import DropoutKeys
from luthier.models.adapters import CONFIG as ADAPTER_CONFIG
from luthier.models.adapters import (
    begins,
    load_adapter,
    quantized_from,
    starts_at_base,
    trained_quantization,
    trained_system,
    went_on_from,
)
from luthier.models.dequantized import dequantize
from luthier.models.folder import summarise
from luthier.models.load import fingerprint, load_model
from luthier.models.new_tokens import grow
from luthier.models.precision import DTYPES, choose_dtype
from luthier.models.reading import context_length, load_tokenizer
from luthier.models.score_head import gives_scores, settle_padding, stored_as_scores
from luthier.models.settings import read_json
from luthier.models.source import OF_SCORES, ModelSource
from luthier.models.sources.resolve import resolve
from luthier.policy.policy import Policy
from luthier.runs import beginning
from luthier.runs.at_step import at_step
from luthier.system.devices import device as this_device
from luthier.types import Message

TOKENIZER = "tokenizer_config.json"
Base = Literal["as trained", "16bit", "dequantized"]
Takes = Literal["words", "scores", "either"]


@dataclass
class Opened:
    """A model in eval mode with what it needs to read and write text."""

    target: str
    """As the user named it."""
    model: Any
    """A PEFT model where there is an adapter, else a transformers model."""
    tokenizer: Any
    renderer: ChatRenderer
    template: Template | None
    """None where the tokenizer has none: then the model can be scored on plain text only."""
    source: ModelSource
    config: RunConfig | None
    """Of the run that made it; None for other people's models and adapters."""
    compute_dtype: torch.dtype
    system: str | None = None
    """The system text that every conversation of the training data had: what it is served with where no other is given."""
    trust_remote_code: bool = False
    quantization: ComponentConfig | None = None
    """How the base is held: as when the adapter was trained."""
    step: int | None = None
    """Of the checkpoint; None where it is a result."""

    @property
    def adapter(self) -> Path | None:
        return self.source.adapter

    @property
    def gives_scores(self) -> bool:
        """Whether it scores documents, and has no words to say."""
        return gives_scores(self.model)

    @property
    def run(self) -> Path | None:
        """The folder of the run that made it."""
        return (self.source.adapter or self.source.folder).parent if self.config is not None else None

    @property
    def context_tokens(self) -> int | None:
        """The longest text that the model takes."""
        core = self.model.get_base_model() if self.adapter is not None else self.model
        return context_length(core.config)

    @property
    def is_tuned(self) -> bool:
        """Whether there is something to compare with: what it was before it was tuned."""
        return self.adapter is not None or self.config is not None

    @property
    def before(self) -> str:
        """What it was before it was tuned: its base, and what its adapter began with."""
        name = self.config.model.path if self.config is not None else self.source.name
        if self.adapter is None:
            return name
        if (path := went_on_from(self.adapter)) is not None:
            return f"{name} with the adapter of {path}"
        return name if starts_at_base(self.adapter) else f"{name} as its adapter began ({begins(self.adapter)})"

    def prompt_ids(self, messages: Sequence[Message], tools: str = "") -> list[int]:
        """As those of the renderer, whose errors are in the words of a command.

        Raises:
            UserError: there is no chat template, or it does not hold the messages.
        """
        try:
            return self.renderer.prompt_ids(messages, tools)
        except UserError as error:
            raise named_by("--prompt", error) from None

    def policy(self, with_reference: bool = False) -> Policy:
        """The model in scoring form, for padded batches and the stock attention: exact on every architecture.

        Args:
            with_reference: whether `policy.reference()` will be used. Where switching an adapter off is not the way
                back to step 0, this loads the weights of then.

        Raises:
            UserError: a reference is wanted of something that luthier did not tune.
        """
        from_base = self.adapter is not None and starts_at_base(self.adapter)
        policy = Policy(self.model, DropoutKeys(0), self.compute_dtype, from_base).eval()
        policy.verify_head()
        if with_reference and not from_base:
            policy.initial = self._weights_at_step_0()
        return policy

    def _weights_at_step_0(self) -> dict[str, torch.Tensor]:
        """Of all that was trained, by the names of the policy's parameters."""
        if self.adapter is not None and self.config is not None:
            device = next(self.model.parameters()).device
            return {name: tensor.to(device) for name, tensor in beginning.read(self.adapter.parent).items()}
        if self.config is None:
            raise UserError(
                self.target,
                "nothing is known of what it was before it was tuned",
                "the folder of a run, or an adapter that began as its base",
                "luthier compare RUN --prompt TEXT",
            )
        before = resolve(self.config.model.path, self.config.model.revision, self.trust_remote_code)
        own = next(self.model.parameters())
        base = load_model(before, dtype=own.dtype, device=own.device, trust_remote_code=self.trust_remote_code)
        grow(base, self.model.get_input_embeddings().weight.shape[0])
        return {f"model.{name}": parameter.data for name, parameter in base.named_parameters()}


def open_model(
    target: str,
    *,
    dtype: str = "auto",
    device: torch.device | None = None,
    base: Base = "as trained",
    chat_template: str | None = None,
    quantization: ComponentConfig | None = None,
    trust_remote_code: bool = False,
    takes: Takes = "words",
) -> Opened:
    """Opens RUN, a CHECKPOINT of one, ADAPTER or MODEL (any source of `model.path`).

    Args:
        dtype: how frozen weights are held; `auto`: as in the run that made it, else by the hardware.
        device: where; default: the machine's best.
        base: what an adapter that was trained on a quantized base is put on: that, the base in 16 bits, or the quantized
            base's values as plain weights.
        quantization: how the weights are held where no adapter was trained on them held otherwise.
        chat_template: one that comes with luthier, or a Jinja file, in the place of the tokenizer's own.
        takes: what the model has to give: words, or scores of documents.

    Raises:
        UserError: there is no such model, it does not fit together, or it gives something else.
        EnvironmentProblem: it cannot be fetched.
    """
    found = at_step(target)
    source = resolve(str(found.run) if found is not None else target, trust_remote_code=trust_remote_code)
    weights = found.weights() if found is not None else {}
    result = source.adapter or source.folder
    config, scored = _config_of_run(result), _is_scored(source, target, takes)
    where = device if device is not None else this_device()
    chosen, _why = choose_dtype(_of_run(result, config) if dtype == "auto" and config is not None else dtype, where)
    held = (_trained_quantization(result, config) if source.adapter is not None else None) or quantization
    model = _loaded(source, result, chosen, where, held, base, trust_remote_code, scored)
    if found is not None:
        found.put_into(model, weights)
    tokenizer = _tokenizer_of(source, trust_remote_code)
    if chat_template is not None:
        tokenizer.chat_template = _template_of(tokenizer, chat_template)
    template = Template.choose(tokenizer) if tokenizer.chat_template else None
    renderer = ChatRenderer(tokenizer, template, () if scored else _stop_ids(model))
    if scored:
        settle_padding(model.get_base_model() if source.adapter is not None else model, tokenizer, renderer.stop_ids)
    system = trained_system(result)
    return Opened(
        target,
        model.eval(),
        tokenizer,
        renderer,
        template,
        source,
        config,
        chosen,
        system,
        trust_remote_code,
        held,
        found.step if found is not None else None,
    )


def check_kind(target: str, takes: Takes, trust_remote_code: bool = False) -> None:
    """Whether a model gives what is needed, before anything is loaded. Raises UserError."""
    found = at_step(target)
    path = str(found.run) if found is not None else target
    _is_scored(resolve(path, trust_remote_code=trust_remote_code), target, takes)


def open_tokenizer(target: str, trust_remote_code: bool = False) -> tuple[Any, ChatRenderer]:
    """As `open_model` has them, without the model and so without its tokens that end an answer. Raises UserError."""
    found = at_step(target)
    source = resolve(str(found.run) if found is not None else target, trust_remote_code=trust_remote_code)
    tokenizer = _tokenizer_of(source, trust_remote_code)
    return tokenizer, ChatRenderer(tokenizer, Template.choose(tokenizer) if tokenizer.chat_template else None)


def _tokenizer_of(source: ModelSource, trust_remote_code: bool) -> Any:
    result = source.adapter or source.folder
    return load_tokenizer(result if (result / TOKENIZER).is_file() else source.folder, trust_remote_code)


def _is_scored(source: ModelSource, target: str, takes: Takes) -> bool:
    """Whether it is a model that gives scores, as its files say. Raises UserError where the other kind is needed."""
    if source.adapter is not None:
        scored = read_json(source.adapter / ADAPTER_CONFIG, target).get("task_type") == OF_SCORES
    else:
        scored = stored_as_scores(source.folder, source.name)
    if scored and takes == "words":
        raise UserError(
            target,
            "it is a reward model: it gives scores, and has no words to say",
            "a model that answers",
            f"luthier score {shlex.quote(target)} --data FILE",
        )
    if takes == "scores" and not scored:
        raise UserError(
            target,
            "it is no reward model: it gives words, and no scores",
            "a run with objective: reward, or a model in the layout of transformers' sequence classification",
            "luthier runs lists the runs that there are",
        )
    return scored


def _template_of(tokenizer: Any, name: str) -> str:
    """The text of a template that a command names. Raises UserError in the command's words."""
    try:
        return Template.choose(tokenizer, name).saved_source
    except UserError as error:
        raise named_by(TEMPLATE, error) from None


def _loaded(
    source: ModelSource,
    result: Path,
    dtype: torch.dtype,
    device: torch.device,
    held: ComponentConfig | None,
    base: Base,
    trust_remote_code: bool,
    scored: bool,
) -> Any:
    """The base as `base` says, with the adapter on it if there is one."""
    quantization, before = None, None
    if held is not None and base != "16bit":
        quantization = load_component("quantization", held.kind)(held)
        before = quantized_from(result)
    model: Any = load_model(
        source,
        dtype=dtype,
        device=device,
        quantization=quantization,
        quantized_from=DTYPES[before] if before is not None else None,
        trust_remote_code=trust_remote_code,
        scored=scored,
    )
    if quantization is not None and base == "dequantized":
        model = dequantize(model, dtype)
    if source.adapter is not None:
        model = load_adapter(model, source.adapter, base=fingerprint(source).as_dict())
    return model


def _of_run(result: Path, config: RunConfig) -> str:
    """The dtype in which a run computed."""
    manifest = json.loads((result.parent / "manifest.json").read_text(encoding="utf-8"))
    return str(manifest.get("decisions", {}).get("dtype", config.model.dtype))


def _trained_quantization(result: Path, config: RunConfig | None) -> ComponentConfig | None:
    """As the run says that made the adapter, else as the adapter itself does."""
    if config is not None:
        return config.model.quantization
    found = trained_quantization(result)
    if found is None:
        return None
    schema: type[ComponentConfig] = load_component("quantization", str(found.get("kind"))).Config
    return schema.model_validate(found)


def _stop_ids(model: Any) -> list[int]:
    """What the base's own generation config stops at; an adapter's folder has no such file."""
    core = model.get_base_model() if isinstance(model, PeftModel) else model
    found = core.generation_config.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def _config_of_run(result: Path) -> RunConfig | None:
    """The configuration beside RUN/adapter or RUN/model."""
    run = result.parent
    if result.name not in ("adapter", "model") or not (run / "manifest.json").is_file():
        return None
    return configuration.load(run / "config.yaml")


def base_dtype(source: ModelSource) -> str:
    """The dtype in which the base is loaded where nobody asks for another, for example `bfloat16`: what its config.json
    names, else the commonest of its weights."""
    tree = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    text = tree.get("text_config", {})
    found = tree.get("dtype") or tree.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    if found:
        return str(found).removeprefix("torch.")
    return next(iter(summarise(source.folder, source.name).floating), "float32")

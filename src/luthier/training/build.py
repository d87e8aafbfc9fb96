"""Everything that a run needs, built from a RunConfig in order: model, data, decisions, policy, optimizer.

`luthier train` goes on with the loop, `luthier inspect` looks at what was built.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from luthier import component
from luthier.config import RunConfig
from luthier.data.dataset.mismatched import mismatched_of
from luthier.data.dataset.prepare import Prepared, prepare
from luthier.data.dataset.progress import RowProgress
from luthier.data.dataset.samples import SampleSet
from luthier.data.dataset.workers import limit_of
from luthier.data.steps.layout import Layout
from luthier.engines import Engine
from luthier.errors import EnvironmentProblem, UserError
from luthier.inference.verified_export import export
from luthier.kernels.dropout import DropoutKeys, seeded
from luthier.models.adapters import adapter_hash, made_of
from luthier.models.checks import quantized
from luthier.models.flat import prove, use_flat_attention
from luthier.models.folder import summarise
from luthier.models.load import fingerprint, load_model
from luthier.models.new_tokens import grow, names_of_edges, refuse_untrained
from luthier.models.own_losses import own_losses
from luthier.models.precision import dtype_name, hold_frozen, leave_casts_to_autocast
from luthier.models.reading import add_tokens, context_length, load_config, load_tokenizer
from luthier.models.score_head import begin_head, refuse_without_scores, stores_a_head
from luthier.models.source import ModelSource
from luthier.models.sources.resolve import is_run, resolve
from luthier.objectives import Objective
from luthier.optimizers import Optimizer
from luthier.planning.layout import choose_layout
from luthier.planning.memory import activation_checkpointing, held_bytes, tokens_per_micro_batch, trained_parameters
from luthier.policy.neftune import Noise
from luthier.policy.policy import Policy, enable_activation_checkpointing
from luthier.policy.routers import check_routers
from luthier.randomness import key
from luthier.runs.at_step import at_step, hash_of_adapter
from luthier.runs.beginning import RunStart
from luthier.runs.checkpoint import Checkpoints
from luthier.runs.manifest import ASKED_ANEW
from luthier.runs.run_folder import CHECKPOINTS, MERGED
from luthier.system.cores import waiting
from luthier.system.words import counted, noun
from luthier.training.job import Job
from luthier.training.parameters import make_optimizer, train_in_bfloat16
from luthier.training.schedule import make_schedule, warmup_steps
from luthier.training.teacher import KnownTeacher, known_teacher, make_teacher, refuse_unfit
from luthier.tuning import Tuned, Tuning


@dataclass
class Built:
    """What `build` made."""

    source: ModelSource
    tokenizer: Any
    data: Prepared
    decisions: dict[str, Any]
    """what was chosen by measurement; written to the manifest, and replayed at resume"""
    tuned: Tuned
    new_tokens: dict[str, int]
    """tokens that the model did not have, and their ids"""
    restored: bool
    """whether a checkpoint is there to go on from"""
    job: Job
    teacher: KnownTeacher | None = None

    @property
    def adapter_hash(self) -> str | None:
        """Of the adapter that the run goes on from."""
        path = self.tuned.adapter_path
        return hash_of_adapter(path) if path is not None else None


def silent(_text: str) -> None:
    """Says nothing."""


def build(
    config: RunConfig,
    engine: Engine,
    dtype: torch.dtype,
    *,
    decided: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = silent,
) -> Built:
    """From the model's source to a job that can begin. Nothing is written to `output_dir`.

    Args:
        decided: the decisions of the run that goes on, of which some may be asked for anew; by default they are made here.
        say: gets each line for the person who watches.

    Raises:
        UserError, EnvironmentProblem: the input or the machine does not allow the run.
    """
    engine.scale_losses(dtype == torch.float16)
    objective: Objective = component.make("objectives", config.objective)
    with _main_process_first(engine), RowProgress() as progress:
        source = _model_to_tune(config, trust_remote_code, say, resumed=decided is not None)
        tokenizer = load_tokenizer(source.folder, trust_remote_code=trust_remote_code)
        new = add_tokens(tokenizer, config.data.add_tokens)
        model_config = _model_config(source, objective, trust_remote_code)
        context = context_length(model_config)
        known = known_teacher(objective.teaching, trust_remote_code)
        data = prepare(config, tokenizer, context_length=context, objective=objective, watch=progress)
    refuse_unfit(known, source.name, tokenizer, data, engine)
    mismatched = mismatched_of(data.learned, config.seed, limit_of(config.data, context)) if objective.mismatched else {}
    steps = data.steps(config)
    say("\n".join([f"model: {source.name}", _method(config), data.ledger.as_text(), *steps.notes(), *data.notes]))
    warmup_steps(config.training, steps.total)  # before the model is loaded

    if decided is not None:
        decisions = engine.from_main(decided | _asked_anew(config))
    else:
        decisions = _decide(config, source, model_config, data, objective, dtype, engine, trust_remote_code, known)
    torch.set_num_threads(decisions["threads"])
    decisions["waiting"] = waiting()  # as it is at this start: it does not change numbers
    say(_layout(decisions))
    checkpoints = Checkpoints(Path(config.output_dir) / CHECKPOINTS, config.training.save_total_limit)
    restored = engine.from_main(decided is not None and bool(checkpoints.steps()))
    policy, tuned = build_policy(
        config, source, dtype, engine.device, decisions, trust_remote_code, data, new, restored=restored, say=say
    )
    say(tuned.trained)
    optimizer: Optimizer = component.make("optimizers", config.training.optim)
    for note in (*own_losses(model_config, config.objective), *optimizer.notes(engine.device)):
        say(note)
    if "routing" in objective.wants:
        with policy.computing():
            check_routers(policy.core)
    if "reference" in objective.wants:
        policy.keep_reference()
    if known is not None:
        base = base_record(config, source, data, dtype)
        policy.teacher = make_teacher(known, policy, tuned, base, dtype, decisions["teacher_layout"], say)
    job = _job(config, policy, tuned, data, objective, engine, decisions, checkpoints, mismatched)
    return Built(source, tokenizer, data, decisions, tuned, new, restored, job, known)


def _model_to_tune(
    config: RunConfig, trust_remote_code: bool, say: Callable[[str], None], resumed: bool
) -> ModelSource:
    """The model, or what a run's adapter and its base are together, which is written beside the adapter the first time. A run that is
    resumed goes on with what it began on, whatever became of the adapter.
    """
    path = config.model.path
    step = at_step(path)
    source = resolve(path if step is None else str(step.run), config.model.revision, trust_remote_code)
    adapter = source.adapter
    if step is None and adapter is None:
        return source
    run = adapter.parent if adapter is not None else Path()
    if step is not None or adapter is None or not is_run(run) or Path(path).expanduser().resolve() != run:
        raise UserError(
            "model.path",
            f"{path} is {f'a checkpoint of {step.run}' if step is not None else f'an adapter on {source.name}'}",
            "a model with weights of its own, or a run to merge",
            f"luthier export {path} --to merged --output DIR, then model=DIR",
        )
    folder = run / MERGED
    if not folder.exists():
        try:
            export(str(run), "merged", folder, unproven=True, trust_remote_code=trust_remote_code, say=say)
        except UserError as error:
            line = f"luthier export {shlex.quote(str(run))} --to merged --output {shlex.quote(str(folder))}"
            ways = f"{line} --dtype float32, or with --base where {run.name} was held in fewer bits; then this again"
            raise UserError(f"model.path: {path} is merged first", error.found, error.expected, ways) from None
    elif not resumed and made_of(folder) != adapter_hash(adapter):
        raise UserError(
            "model.path",
            f"{folder} was not made of the adapter that {path} has now: the run has gone on since, or a file is another",
            "what this adapter and its base are together",
            f"rm -r {shlex.quote(str(folder))}; then the same command, which merges it anew",
        )
    return resolve(str(folder), None, trust_remote_code)


@contextmanager
def _main_process_first(engine: Engine) -> Iterator[None]:
    """The first process fetches the model and encodes the data, the others find both; where it fails, they end too."""
    if not engine.main and not engine.sum([0.0])[0]:
        raise EnvironmentProblem("another process", "it stopped before the run began", "see its message")
    done = 0.0
    try:
        yield
        done = 1.0
    finally:
        if engine.main:
            engine.sum([done])


def _model_config(source: ModelSource, objective: Objective, trust_remote_code: bool) -> Any:
    """The model's own. Raises UserError where its architecture has no form that the objective needs."""
    found = load_config(source.folder, trust_remote_code)
    if "value" in objective.wants:
        refuse_without_scores(found, source.name)
    return found


def _method(config: RunConfig) -> str:
    """The values that decide most, as they are used."""
    training = config.training
    epochs = training.num_train_epochs or 0
    length = f"{epochs:g} {noun(epochs, 'epoch')}"
    if training.max_steps is not None:
        length = counted(training.max_steps, "step")
    return (
        f"method: {_objective(config)}, {config.tuning.kind}; learning rate {training.learning_rate:g}, "
        f"{training.lr_scheduler_type}, warm-up {training.warmup_steps or 0:g}, weight decay {training.weight_decay:g}; "
        f"{length}, global batch {training.global_batch_size}"
    )


def _layout(decisions: Mapping[str, Any]) -> str:
    limit = decisions["max_tokens_per_micro_batch"]
    return f"layout: {decisions['layout']} ({decisions['layout_reason']}), at most {limit:,} tokens in one forward pass"


def _objective(config: RunConfig) -> str:
    """Its name; of a sum the terms and their weights, as `0.7 sft + 0.3 z_loss`."""
    if not component.load("objectives", config.objective.kind).is_sum:
        return config.objective.kind
    terms = (f"{term['weight']:g} {term['kind']}" for term in config.objective.model_dump()["terms"])
    return f"{config.objective.kind} ({' + '.join(terms)})"


def _asked_anew(config: RunConfig) -> dict[str, Any]:
    asked = {name: getattr(config.training, name) for name in ASKED_ANEW}
    return {name: value for name, value in asked.items() if value != "auto"}


def _decide(
    config: RunConfig,
    source: ModelSource,
    model_config: Any,
    data: Prepared,
    objective: Objective,
    dtype: torch.dtype,
    engine: Engine,
    trust_remote_code: bool = False,
    teacher: KnownTeacher | None = None,
) -> dict[str, Any]:
    """What is chosen by measurement, on the first process."""
    verdict = prove(model_config, dtype, engine.device)
    layout, reason = choose_layout(config, model_config, verdict, objective, data.learned["train"])
    limit = tokens_per_micro_batch(config.training.max_tokens_per_micro_batch, engine.device)
    longest = max(limit, int(data.learned["train"].tokens_together(layout).max()))
    asked = config.training.activation_checkpointing
    held = _held_bytes(config, source, model_config, dtype, trust_remote_code) if asked == "auto" else 0
    if teacher is not None and asked == "auto":
        held += teacher.held_bytes(dtype, streamed=data.learned["train"].neighbours is not None)
    found = {
        "layout": layout,
        "layout_reason": reason,
        "proof": asdict(verdict),
        "max_tokens_per_micro_batch": limit,
        "activation_checkpointing": activation_checkpointing(asked, model_config, longest, held, engine.device),
        "dtype": dtype_name(dtype),
        "threads": torch.get_num_threads(),
        "processes": engine.processes,
    }
    if teacher is not None:
        found["teacher_layout"] = teacher.layout(found["layout"], dtype, engine.device)
    # Processes with other amounts of work in a step would wait for each other for ever.
    decided: dict[str, Any] = engine.from_main(found)
    return decided


def _gives_scores(config: RunConfig) -> bool:
    return "value" in component.load("objectives", config.objective.kind).wants


def _held_bytes(
    config: RunConfig, source: ModelSource, model_config: Any, dtype: torch.dtype, trust_remote_code: bool
) -> int:
    """Estimated, of weights and what belongs to those that are trained; a quantized base counts as it is stored, which is
    more."""
    stored = summarise(source.folder, source.name)
    if config.model.quantization is not None:
        return stored.bytes
    tuning = component.make("tuning", config.tuning)
    scored = _gives_scores(config)
    trained = 0 if tuning.makes_adapter else trained_parameters(model_config, tuning, trust_remote_code, scored)
    optimizer = component.load("optimizers", config.training.optim.kind)
    return held_bytes(stored.parameters, trained, dtype.itemsize, optimizer.state_bytes, optimizer.in_bfloat16)


def build_policy(
    config: RunConfig,
    source: ModelSource,
    dtype: torch.dtype,
    device: torch.device,
    decisions: dict[str, Any],
    trust_remote_code: bool = False,
    data: Prepared | None = None,
    new: Mapping[str, int] | None = None,
    *,
    restored: bool = False,
    say: Callable[[str], None] = silent,
) -> tuple[Policy, Tuned]:
    """The model as it is trained, and what its tuning method says of it.

    Args:
        data: what it will learn from.
        new: tokens that the model does not have, and their ids.
        restored: whether a checkpoint, and what the run began with, are put in afterwards.
    """
    new = new or {}
    keys = DropoutKeys(config.seed)
    tuning: Tuning = component.make("tuning", config.tuning)
    loaded = dtype if tuning.makes_adapter else _dtype_of_trained(source, dtype)
    model = _hold_base(config, source, loaded, device, trust_remote_code, say)
    grow(model, max(new.values(), default=-1) + 1)
    start = RunStart(
        keys,
        {name: list(new.values()) for name in names_of_edges(model)} if new else {},
        restored,
        source=source,
        base=base_record(config, source, data, dtype),
        samples=data.learned["train"] if data is not None else (),
        new=new,
        tell=say,
    )
    with seeded(key(config.seed, "initial weights") % 2**63):
        tuned = tuning.apply(model, start)
    refuse_untrained(tuned.model, new)
    if not tuning.makes_adapter:
        hold_frozen(tuned.model, dtype)
    if dtype != torch.float32:
        leave_casts_to_autocast(tuned.model)
    core = tuned.model.get_base_model() if tuning.makes_adapter else tuned.model
    in_bfloat16 = component.load("optimizers", config.training.optim.kind).in_bfloat16
    said = [f"{tuned.trained}, in {'bfloat16, rounded stochastically' if in_bfloat16 else 'float32'}"]
    if decisions["activation_checkpointing"]:
        enable_activation_checkpointing(core)
        said.append("activation checkpointing")
    if in_bfloat16:
        train_in_bfloat16(tuned.model, dtype, config.training.optim)
    policy = Policy(tuned.model, keys, compute_dtype=dtype, starts_at_base=tuned.off_is_start == "to the bit")
    if (alpha := config.training.neftune_noise_alpha) is not None:
        Noise(policy, alpha)
        said.append(f"noise of {alpha:g} on the embeddings")
    if not policy.verify_head():
        said.append("the head is computed whole, not in chunks")
    if decisions["layout"] != "padded":
        use_flat_attention(core)
    return policy, replace(tuned, trained="; ".join(said))


def _dtype_of_trained(source: ModelSource, dtype: torch.dtype) -> torch.dtype:
    """Weights that are trained are float32 from the start: loaded in fewer bits than are stored they would begin rounded."""
    as_stored = set(summarise(source.folder, source.name).floating) <= {dtype_name(dtype)}
    return dtype if as_stored else torch.float32


def _hold_base(
    config: RunConfig,
    source: ModelSource,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool,
    say: Callable[[str], None],
) -> Any:
    """The model before anything is tuned, in `dtype` or in the bits that `model.quantization` asks for."""
    quantization = config.model.quantization
    held = component.make("quantization", quantization) if quantization is not None else None
    scored = _gives_scores(config)
    model = load_model(
        source, dtype=dtype, device=device, quantization=held, trust_remote_code=trust_remote_code, scored=scored
    )
    if scored and stores_a_head(source.folder, source.name):
        say("the head of scores goes on from that of the model")
    elif scored:
        begin_head(model, config.seed)
    layers, share = quantized(model)
    if quantization is not None and layers:
        say(f"held in {quantization.kind}: {counted(layers, 'layer')}, {100 * share:.0f} % of the base's weights")
    return model


def base_record(config: RunConfig, source: ModelSource, data: Prepared | None, dtype: torch.dtype) -> dict[str, Any]:
    """What a result says of the model underneath, so that it is put on no other one, and held as it was."""
    quantization = config.model.quantization
    held = quantization.model_dump(mode="json") if quantization is not None else None
    template = data.template.fingerprint if data is not None and data.template is not None else None
    rounded = {"quantized_from": dtype_name(dtype)} if held is not None else {}
    return {**fingerprint(source).as_dict(), "quantization": held, "template": template, **rounded}


def _job(
    config: RunConfig,
    policy: Policy,
    tuned: Tuned,
    data: Prepared,
    objective: Any,
    engine: Engine,
    decisions: dict[str, Any],
    checkpoints: Checkpoints,
    mismatched: dict[str, SampleSet],
) -> Job:
    training = config.training
    steps = data.steps(config)
    layout: Layout = decisions["layout"]
    optimizer = make_optimizer(training, policy, tuned.rates, config.seed)
    return Job(
        config=training,
        seed=config.seed,
        policy=policy,
        wrapped=engine.wrap(policy),
        engine=engine,
        objective=objective,
        samples=data.learned["train"],
        held_out=data.learned.get("eval"),
        steps=steps,
        layout=layout,
        max_tokens=decisions["max_tokens_per_micro_batch"],
        optimizer=optimizer,
        schedule=make_schedule(training, steps.total),
        checkpoints=checkpoints,
        waiting=tuned.waiting,
        mismatched=mismatched,
    )

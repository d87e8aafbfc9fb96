"""The spine: builds everything from a RunConfig in order, trains, saves. A table of contents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from luthier import component, run_folder
from luthier.checkpoint import Checkpoints
from luthier.config import RunConfig
from luthier.data.batching import Layout
from luthier.data.prepare import Prepared, prepare
from luthier.data.render import save_stop_ids
from luthier.dropout import DropoutKeys
from luthier.engine import Engine, deterministic, hardware, is_main_process, make_engine, seeded
from luthier.errors import EnvironmentProblem, Stopped, UserError
from luthier.files import verify, write_folder, write_json
from luthier.finished import Run
from luthier.generation import generate
from luthier.loop import Job, put_weights, restore
from luthier.loop import train as run_loop
from luthier.models.adapters import (
    adapter_folder,
    embedding_rows,
    load_adapter,
    save_adapter,
    starts_where_off,
    write_origin,
)
from luthier.models.flat import prove, stock_attention, use_flat_attention
from luthier.models.load import (
    DTYPES,
    choose_dtype,
    context_length,
    fingerprint,
    hold_frozen,
    load_config,
    load_model,
    load_tokenizer,
)
from luthier.models.new_tokens import add_tokens, grow, names_of_edges, refuse_untrained
from luthier.models.opened import base_dtype
from luthier.models.sources import ModelSource, resolve
from luthier.neftune import Noise
from luthier.optimization import ROUNDS_STOCHASTICALLY, make_optimizer, make_schedule
from luthier.planning import activation_checkpointing, held_bytes, tokens_per_micro_batch
from luthier.policy import Policy, enable_activation_checkpointing
from luthier.randomness import key
from luthier.reporting.recorder import SAMPLES, Recorder, cut_back, read_lines
from luthier.reporting.report import write_report
from luthier.reporting.row_progress import RowProgress
from luthier.reporting.summary import end_summary
from luthier.reporting.trackers import check_trackers
from luthier.types import Message

ANSWER_TOKENS = 200
"""Most tokens of a sample answer during training."""


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    trust_remote_code: bool = False,
    say: Callable[[str], None] | None = None,
) -> Run:
    """Trains as the configuration says; the result is the run's folder.

    Args:
        resume: go on from the newest whole checkpoint of `output_dir`.
        trust_remote_code: run Python code that comes with the model.
        say: gets each line for the person who watches; default: the screen.

    Raises:
        UserError, EnvironmentProblem: before anything is written, where the input or the machine does not allow the run.
        NonFinite, Stopped: as `luthier.loop.train`.
    """
    folder, main = Path(config.output_dir), is_main_process()
    say = (say or print) if main else _silent
    with run_folder.locked(folder, resume, enabled=main):
        before = run_folder.previous(folder, config) if resume else None
        if before is not None and before["state"] == "finished":
            say(f"{folder} is finished already; nothing to do")
            return Run(folder)
        check_trackers(config.report_to)
        deterministic(config.training.deterministic)
        engine = make_engine(config.distributed)
        try:
            dtype, why = _dtype(config, engine, before)
            engine.scale_losses(dtype == torch.float16)
            say(f"held and computed in {_name(dtype)} ({why}), on {engine.device}")
            _train(config, folder, engine, dtype, before, trust_remote_code, say)
            engine.barrier()
        finally:
            engine.close()
    return Run(folder)


def _train(
    config: RunConfig,
    folder: Path,
    engine: Engine,
    dtype: torch.dtype,
    before: dict[str, Any] | None,
    trust_remote_code: bool,
    say: Callable[[str], None],
) -> None:
    """From the model's source to the result; `before` is the manifest of the run that is resumed."""
    objective = component.load("objectives", config.objective.kind)(config.objective)
    with _main_process_first(engine), RowProgress() as progress:
        source = base_of(config, trust_remote_code)
        tokenizer = load_tokenizer(source.folder, trust_remote_code=trust_remote_code)
        new = add_tokens(tokenizer, config.data.add_tokens)
        model_config = load_config(source.folder, trust_remote_code)
        context = context_length(model_config)
        data = prepare(config, tokenizer, context_length=context, objective=objective, watch=progress)
    say("\n".join([f"model: {source.name}", _method(config), data.ledger.as_text(), *data.notes]))

    decisions = before["decisions"] if before else decide(config, source, model_config, data, dtype, engine)
    torch.set_num_threads(decisions["threads"])
    limit = decisions["max_tokens_per_micro_batch"]
    say(f"layout: {decisions['layout']} ({decisions['layout_reason']}), at most {limit:,} tokens in one forward pass")
    policy, trained = build_policy(config, source, dtype, engine.device, decisions, trust_remote_code, data, new)
    say(trained)
    if objective.needs_reference:
        policy.keep_reference()

    job = build_job(config, folder, policy, data, objective, engine, decisions)
    base = _base_record(config, source, data)
    manifest = run_folder.manifest(
        config, data, base, decisions, hardware(engine.device), job.steps.total, engine.processes, trained
    )
    manifest["trained_tensors"] = policy.trained_tensors()
    job.manifest = {name: manifest[name] for name in ("luthier", "versions", "fingerprints", "decisions")}
    if engine.main:
        run_folder.begin(folder, config, data, manifest, before, say)
    if before is not None:
        _resume(job, folder, say)
        engine.barrier()
    job.recorder = Recorder(folder, config, total_steps=job.steps.total, start_step=job.progress.step, main=engine.main)
    job.answer_samples = _sampler(config, job, tokenizer, data)
    state = "failed"
    try:
        run_loop(job)
        state = "trained"
    except (Stopped, KeyboardInterrupt, SystemExit):
        state = "stopped"
        raise
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(job.progress.step, limit, str(error)) from error
    finally:
        job.recorder.close()
        run_folder.set_state(folder, state, enabled=engine.main)
    if engine.main:
        _finish(config, job, folder, tokenizer, data, base, source.plain)
        say(end_summary(folder))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(config: RunConfig, engine: Engine, before: dict[str, Any] | None) -> tuple[torch.dtype, str]:
    """That of the run which is resumed; else as chosen by the first process, which the others follow."""
    if before is not None:
        return DTYPES[before["decisions"]["dtype"]], "as the run began"
    dtype, why = choose_dtype(config.model.dtype, engine.device)
    return DTYPES[engine.from_main(_name(dtype))], why


def _out_of_memory(step: int, limit: int, found: str) -> EnvironmentProblem:
    fix = f"max_tokens_per_micro_batch={max(1, limit // 2)}, or activation_checkpointing=true"
    return EnvironmentProblem(
        f"step {step + 1}", f"out of memory: {found.splitlines()[0][:160]}", "room for a step", fix
    )


def _silent(_text: str) -> None:
    """What other processes say."""


def base_of(config: RunConfig, trust_remote_code: bool) -> ModelSource:
    source = resolve(config.model.path, config.model.revision, trust_remote_code)
    if source.adapter is not None:
        raise UserError(
            "model.path",
            f"{config.model.path} is an adapter on {source.name}",
            "a model with weights of its own",
            f"luthier export {config.model.path} --to merged --output DIR, then model=DIR",
        )
    return source


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


def _method(config: RunConfig) -> str:
    """The values that decide most, as they are used."""
    training = config.training
    length = (
        f"{training.max_steps} steps" if training.max_steps is not None else f"{training.num_train_epochs:g} epochs"
    )
    return (
        f"method: {config.objective.kind}, {config.tuning.kind}; learning rate {training.learning_rate:g}, "
        f"{training.lr_scheduler_type}, warm-up {training.warmup_steps:g}, weight decay {training.weight_decay:g}; "
        f"{length}, global batch {training.global_batch_size}"
    )


def decide(
    config: RunConfig, source: ModelSource, model_config: Any, data: Prepared, dtype: torch.dtype, engine: Engine
) -> dict[str, Any]:
    """What is chosen by measurement, on the first process. Written to the manifest, and replayed at resume."""
    verdict = prove(model_config, dtype, engine.device)
    limit = tokens_per_micro_batch(config.training.max_tokens_per_micro_batch, engine.device)
    longest = max(limit, int(data.train.lengths.max()))
    held = held_bytes(source.folder, all_weights=not component.load("tuning", config.tuning.kind).makes_adapter)
    found = {
        "layout": "flat" if verdict.flat else "padded",
        "layout_reason": verdict.why,
        "proof": asdict(verdict),
        "max_tokens_per_micro_batch": limit,
        "activation_checkpointing": activation_checkpointing(
            config.training.activation_checkpointing, model_config, longest, held, engine.device
        ),
        "dtype": _name(dtype),
        "threads": torch.get_num_threads(),
        "processes": engine.processes,
    }
    # Processes with other amounts of work in a step would wait for each other for ever.
    decided: dict[str, Any] = engine.from_main(found)
    return decided


def build_policy(
    config: RunConfig,
    source: ModelSource,
    dtype: torch.dtype,
    device: torch.device,
    decisions: dict[str, Any],
    trust_remote_code: bool = False,
    data: Prepared | None = None,
    new: Sequence[int] = (),
) -> tuple[Policy, str]:
    """The model as it is trained, and a line that says what is trained.

    Args:
        data: what it will learn from.
        new: ids of tokens that the model does not have.
    """
    quantization = config.model.quantization
    held = component.load("quantization", quantization.kind)(quantization) if quantization is not None else None
    keys = DropoutKeys(config.seed)
    tuning = component.load("tuning", config.tuning.kind)(config.tuning)
    # Weights that are trained are float32 from the start: loaded in fewer bits than are stored they would begin rounded.
    loaded = dtype if tuning.makes_adapter or base_dtype(source) == _name(dtype) else torch.float32
    model = load_model(source, dtype=loaded, device=device, quantization=held, trust_remote_code=trust_remote_code)
    grow(model, max(new, default=-1) + 1)
    if new and tuning.makes_adapter:
        tuning.new_rows = {name: list(new) for name in names_of_edges(model)}
    with seeded(key(config.seed, "initial weights") % 2**63):
        tuned, what = _tuned(config, tuning, model, keys, source, data)
    refuse_untrained(tuned, new)
    if not tuning.makes_adapter:
        hold_frozen(tuned, dtype)
    core = tuned.get_base_model() if tuning.makes_adapter else tuned
    if decisions["activation_checkpointing"]:
        enable_activation_checkpointing(core)
        what += "; activation checkpointing"
    if config.training.optim == ROUNDS_STOCHASTICALLY:
        what = what.replace("in float32", "in bfloat16") + "; rounded by chance"
        _train_in_bfloat16(tuned, dtype)
    from_base = tuning.makes_adapter and starts_where_off(tuned)
    policy = Policy(tuned, keys, compute_dtype=dtype, starts_at_base=from_base)
    if (alpha := config.training.neftune_noise_alpha) is not None:
        Noise(policy, alpha)
        what += f"; noise of {alpha:g} on the embeddings"
    if not policy.verify_head():
        what += "; the head is computed whole, not in chunks"
    if decisions["layout"] == "flat":
        use_flat_attention(core)
    return policy, what


def _base_record(config: RunConfig, source: ModelSource, data: Prepared | None) -> dict[str, Any]:
    """What a result says of the model underneath, so that it is put on no other one."""
    quantization = config.model.quantization
    held = quantization.model_dump(mode="json") if quantization is not None else None
    template = data.template.fingerprint if data is not None and data.template is not None else None
    return {**fingerprint(source).as_dict(), "quantization": held, "template": template}


def _starts_at_base(config: RunConfig, policy: Policy) -> bool:
    """Whether the saved adapter switched off is the policy at step 0: a product that is zero but for rounding counts too."""
    fresh = getattr(config.tuning, "adapter_path", None) is None
    return policy.starts_at_base or (fresh and getattr(config.tuning, "init_lora_weights", None) == "orthogonal")


def _train_in_bfloat16(model: Any, dtype: torch.dtype) -> None:
    if dtype != torch.bfloat16:
        raise UserError(
            "training.optim",
            f"{ROUNDS_STOCHASTICALLY} while {_name(dtype)} is computed in",
            "bfloat16",
            "model.dtype=bfloat16, or training.optim=adamw",
        )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def _tuned(
    config: RunConfig, tuning: Any, model: Any, keys: DropoutKeys, source: ModelSource, data: Prepared | None
) -> tuple[Any, str]:
    """The model with what is trained on it: from the beginning, or from where another adapter ended."""
    if (before := getattr(config.tuning, "adapter_path", None)) is not None:
        folder = adapter_folder(before)
        if embedding_rows(folder) > model.get_input_embeddings().weight.shape[0]:
            raise UserError(
                "tuning.adapter_path",
                f"{before} was trained with new tokens, which this run's tokenizer does not have",
                "the same tokens in data.add_tokens, in the same order",
                "data.add_tokens=[...], as in the config.yaml of that run",
            )
        tuned = load_adapter(model, folder, trainable=True, base=_base_record(config, source, data))
        return tuned, tuning.go_on(tuned, keys)
    tuned, what = tuning.apply(model, keys)
    if wanted := getattr(tuning, "rows_to_begin", 0):
        samples = data.train[:wanted] if data is not None else []
        rows = [sample.input_ids for sample in samples]
        tuning.begin_at_rows(tuned, [torch.as_tensor(ids, dtype=torch.int64) for ids in rows])
    return tuned, what


def build_job(
    config: RunConfig,
    folder: Path,
    policy: Policy,
    data: Prepared,
    objective: Any,
    engine: Engine,
    decisions: dict[str, Any],
) -> Job:
    training = config.training
    steps = data.steps(config)
    layout: Layout = decisions["layout"]
    optimizer = make_optimizer(training, policy, getattr(config.tuning, "loraplus_lr_ratio", None), config.seed)
    return Job(
        config=training,
        seed=config.seed,
        policy=policy,
        wrapped=engine.wrap(policy),
        engine=engine,
        objective=objective,
        samples=data.train,
        held_out=data.eval,
        steps=steps,
        layout=layout,
        max_tokens=decisions["max_tokens_per_micro_batch"],
        optimizer=optimizer,
        schedule=make_schedule(training, steps.total),
        checkpoints=Checkpoints(folder / "checkpoints", training.save_total_limit),
    )


def _resume(job: Job, folder: Path, say: Callable[[str], None]) -> None:
    if not job.checkpoints.steps():
        say("no checkpoint was saved yet: the run begins again at step 0")
        if job.engine.main:
            cut_back(folder, -1)
        return
    step = job.checkpoints.newest_valid(say)
    restore(job, job.checkpoints.load(step))
    if job.engine.main:
        cut_back(folder, step)
    say(f"resumed at step {step} of {job.steps.total}")


def _sampler(config: RunConfig, job: Job, tokenizer: Any, data: Prepared) -> Callable[[int], None]:
    """Answers the sample prompts on the main process, greedily, by the stock attention."""
    prompts = config.training.sample_prompts

    def answer(step: int) -> None:
        if prompts and job.engine.main:
            for prompt, text in zip(prompts, answers(job.policy, tokenizer, data, prompts), strict=True):
                job.recorder.sample(step, prompt, text)

    return answer


def answers(
    policy: Policy, tokenizer: Any, data: Prepared, prompts: Sequence[str], max_new_tokens: int = ANSWER_TOKENS
) -> list[str]:
    """Greedy answers to requests, with the policy as it is."""
    system = [Message("system", data.system)] if data.system else []
    ids = [data.renderer.prompt_ids([*system, Message("user", prompt)]) for prompt in prompts]
    with stock_attention(policy.model), seeded(0), policy.computing():
        found = generate(policy.model, tokenizer, ids, max_new_tokens=max_new_tokens, stop_ids=data.renderer.stop_ids)
    return [item.text for item in found]


def _finish(
    config: RunConfig,
    job: Job,
    folder: Path,
    tokenizer: Any,
    data: Prepared,
    base: dict[str, Any],
    plain: tuple[str, str | None],
) -> None:
    """The result, answers before and after, the report. `base` and `plain` are what is known of the model underneath."""
    step = job.progress.step
    if config.training.load_best_checkpoint and job.progress.best_step is not None:
        step = job.progress.best_step
        if wrong := verify(job.checkpoints.path(step)):
            raise UserError(
                str(job.checkpoints.path(step)),
                f"the best checkpoint is damaged: {wrong}",
                "whole files",
                "load_best_checkpoint=false, with --resume",
            )
        put_weights(job.policy, job.checkpoints.load(step)["weights"])
    tuning = component.load("tuning", config.tuning.kind)

    def fill(target: Path) -> None:
        if tuning.makes_adapter:
            save_adapter(job.policy.model, target, base, _starts_at_base(config, job.policy), data.system, plain)
        else:
            if config.training.optim != ROUNDS_STOCHASTICALLY:
                job.policy.core.float()  # what is not trained may be held in fewer bits
            job.policy.core.save_pretrained(target)
            write_origin(target, {"base": base, "system": data.system})
        if data.template is not None:
            tokenizer.chat_template = data.template.saved_source
        tokenizer.save_pretrained(target)
        save_stop_ids(target, data.renderer.stop_ids)

    write_folder(folder / ("adapter" if tuning.makes_adapter else "model"), fill, {"step": step})
    if prompts := config.training.sample_prompts:
        before = {line["prompt"]: line["answer"] for line in read_lines(folder / SAMPLES) if line["step"] == 0}
        after = answers(job.policy, tokenizer, data, prompts)
        write_json(
            folder / "answers.json",
            [
                {"prompt": prompt, "reference": None, "before": before.get(prompt), "after": text}
                for prompt, text in zip(prompts, after, strict=True)
            ],
        )
    write_report(folder)
    run_folder.set_state(folder, "finished")

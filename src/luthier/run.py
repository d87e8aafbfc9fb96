"""The spine: builds everything from a RunConfig in order, trains, saves. A table of contents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from luthier import component, run_folder
from luthier.checkpoint import Checkpoints, write_folder, write_json
from luthier.config import RunConfig
from luthier.data.batching import Layout, Steps
from luthier.data.prepare import Prepared, prepare
from luthier.engine import Engine, deterministic, hardware, is_main_process, make_engine, seeded
from luthier.engine import device as find_device
from luthier.errors import LuthierError, Stopped, UserError
from luthier.finished import Run
from luthier.generation import generate
from luthier.loop import Job, put_weights, restore
from luthier.loop import train as run_loop
from luthier.models.adapters import save_adapter, write_origin
from luthier.models.flat import prove, stock_attention, use_flat_attention
from luthier.models.load import choose_dtype, context_length, fingerprint, load_model, load_tokenizer
from luthier.models.sources import ModelSource, resolve
from luthier.optimization import make_optimizer, make_schedule
from luthier.planning import activation_checkpointing, tokens_per_micro_batch
from luthier.policy import Policy, enable_activation_checkpointing
from luthier.randomness import DropoutKeys, key
from luthier.reporting.recorder import SAMPLES, Recorder, cut_back, read_lines
from luthier.reporting.report import write_report
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
        dtype, why = choose_dtype(config.model.dtype, find_device())
        engine = make_engine(config.distributed, dtype)
        say(f"held and computed in {_name(dtype)} ({why}), on {engine.device}")
        try:
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
    source = _base_of(config, trust_remote_code)
    tokenizer = load_tokenizer(source.folder, trust_remote_code=trust_remote_code)
    objective = component.load("objectives", config.objective.kind)(config.objective)
    model_config = _model_config(source, trust_remote_code)
    with _main_process_first(engine):
        data = prepare(config, tokenizer, context_length=context_length(model_config), objective=objective)
    say("\n".join([f"model: {source.name}", _method(config), data.ledger.as_text(), *data.notes]))

    decisions = before["decisions"] if before else _decide(config, model_config, dtype, engine)
    torch.set_num_threads(decisions["threads"])
    limit = decisions["max_tokens_per_micro_batch"]
    say(f"layout: {decisions['layout']} ({decisions['layout_reason']}), at most {limit:,} tokens in one forward pass")
    policy, trained = build_policy(config, source, dtype, engine.device, decisions, trust_remote_code)
    say(trained)

    job = _build_job(config, folder, policy, data, objective, engine, decisions)
    base = fingerprint(source).as_dict()
    manifest = run_folder.manifest(config, data, base, decisions, hardware(engine.device), job.steps.total)
    job.manifest = {name: manifest[name] for name in ("luthier", "versions", "fingerprints", "decisions")}
    if engine.main:
        run_folder.begin(folder, config, data, manifest, before, say)
    if before is not None:
        _resume(job, folder, say)
    job.recorder = Recorder(folder, config, total_steps=job.steps.total, start_step=job.progress.step, main=engine.main)
    job.answer_samples = _sampler(config, job, tokenizer, data)
    try:
        run_loop(job)
    except LuthierError as error:
        run_folder.set_state(folder, "stopped" if isinstance(error, Stopped) else "failed", enabled=engine.main)
        raise
    finally:
        job.recorder.close()
    if engine.main:
        _finish(config, job, folder, tokenizer, data, base)
        say(end_summary(folder))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _silent(_text: str) -> None:
    """What other processes say."""


def _base_of(config: RunConfig, trust_remote_code: bool) -> ModelSource:
    source = resolve(config.model.path, config.model.revision, trust_remote_code)
    if source.adapter is not None:
        raise UserError(
            "model.path",
            f"{config.model.path} is an adapter on {source.name}",
            "a model with weights of its own",
            f"luthier export {config.model.path} --to merged --output DIR, then model=DIR",
        )
    return source


def _model_config(source: ModelSource, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)


@contextmanager
def _main_process_first(engine: Engine) -> Iterator[None]:
    """The first process fills the cache of encoded data, the others read it."""
    if not engine.main:
        engine.barrier()
    yield
    if engine.main:
        engine.barrier()


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


def _decide(config: RunConfig, model_config: Any, dtype: torch.dtype, engine: Engine) -> dict[str, Any]:
    """What is chosen by measurement. Written to the manifest, and replayed at resume."""
    verdict = prove(model_config, dtype, engine.device)
    limit = tokens_per_micro_batch(config.training.max_tokens_per_micro_batch, engine.device)
    return {
        "layout": "flat" if verdict.flat else "padded",
        "layout_reason": verdict.why,
        "proof": asdict(verdict),
        "max_tokens_per_micro_batch": limit,
        "activation_checkpointing": activation_checkpointing(
            config.training.activation_checkpointing, model_config, limit, engine.device
        ),
        "dtype": _name(dtype),
        "threads": torch.get_num_threads(),
        "processes": engine.processes,
    }


def build_policy(
    config: RunConfig,
    source: ModelSource,
    dtype: torch.dtype,
    device: torch.device,
    decisions: dict[str, Any],
    trust_remote_code: bool = False,
) -> tuple[Policy, str]:
    """The model as it is trained, and a line that says what is trained."""
    quantization = config.model.quantization
    held = component.load("quantization", quantization.kind)(quantization) if quantization is not None else None
    model = load_model(source, dtype=dtype, device=device, quantization=held, trust_remote_code=trust_remote_code)
    keys = DropoutKeys(config.seed)
    tuning = component.load("tuning", config.tuning.kind)(config.tuning)
    with seeded(key(config.seed, "initial weights") % 2**63):
        tuned, what = tuning.apply(model, keys)
    core = tuned.get_base_model() if tuning.makes_adapter else tuned
    if decisions["activation_checkpointing"]:
        enable_activation_checkpointing(core)
        what += "; activation checkpointing"
    policy = Policy(tuned, keys, compute_dtype=dtype, starts_at_base=tuning.makes_adapter)
    if not policy.verify_head():
        what += "; the head is computed whole, not in chunks"
    if decisions["layout"] == "flat":
        use_flat_attention(core)
    return policy, what


def _build_job(
    config: RunConfig,
    folder: Path,
    policy: Policy,
    data: Prepared,
    objective: Any,
    engine: Engine,
    decisions: dict[str, Any],
) -> Job:
    training = config.training
    assert training.num_train_epochs is not None
    steps = Steps(
        len(data.train), training.global_batch_size, config.seed, training.num_train_epochs, training.max_steps
    )
    layout: Layout = decisions["layout"]
    optimizer = make_optimizer(training, policy)
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
        cut_back(folder, -1)
        return
    step = job.checkpoints.newest_valid(say)
    restore(job, job.checkpoints.load(step))
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
    with stock_attention(policy.model), seeded(0):
        found = generate(policy.model, tokenizer, ids, max_new_tokens=max_new_tokens, stop_ids=data.renderer.stop_ids)
    return [item.text for item in found]


def _finish(config: RunConfig, job: Job, folder: Path, tokenizer: Any, data: Prepared, base: Any) -> None:
    """The result, answers before and after, the report."""
    progress = job.progress
    if config.training.load_best_checkpoint and progress.best_step is not None:
        put_weights(job.policy, job.checkpoints.load(progress.best_step)["weights"])
    tuning = component.load("tuning", config.tuning.kind)

    def fill(target: Path) -> None:
        if tuning.makes_adapter:
            save_adapter(job.policy.model, target, base, job.policy.starts_at_base, data.system)
        else:
            job.policy.core.save_pretrained(target)
            write_origin(target, {"base": base, "system": data.system})
        if data.template is not None:
            tokenizer.chat_template = data.template.saved_source
        tokenizer.save_pretrained(target)

    write_folder(
        folder / ("adapter" if tuning.makes_adapter else "model"), fill, {"step": progress.best_step or progress.step}
    )
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
    run_folder.set_state(folder, "finished")
    write_report(folder)

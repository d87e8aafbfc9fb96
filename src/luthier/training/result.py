"""What a run leaves: the adapter or model, and sample answers before and after."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from luthier import component
from luthier.config import RunConfig
from luthier.data.chat.default_system import with_default_system
from luthier.data.chat.stop_tokens import save_stop_ids
from luthier.errors import UserError
from luthier.inference.generation import generate
from luthier.kernels.dropout import seeded
from luthier.models.adapters import save_adapter, write_origin
from luthier.models.flat import stock_attention
from luthier.models.load import load_model, quiet
from luthier.models.new_tokens import grow
from luthier.models.precision import dtype_name
from luthier.models.score_head import WEIGHT as HEAD
from luthier.models.score_head import gives_scores, heads_of_words, settle_padding
from luthier.models.shards import SHARD_BYTES, write_shards
from luthier.models.source import ModelSource
from luthier.models.stored import Change, NotByName, Read, Stored, save_settings
from luthier.runs import manifest
from luthier.runs.checkpoint import Damaged
from luthier.runs.recorder import Recorder, read_lines
from luthier.runs.run_folder import ADAPTER, ANSWERS, GOES_ON, MODEL, SAMPLES
from luthier.system.faults import faults_told
from luthier.system.files import as_json, write_file, write_folder
from luthier.training.build import Built
from luthier.training.job import Job
from luthier.training.state import put_weights
from luthier.types import Message

ANSWER_TOKENS = 200
"""Most tokens of a sample answer during training."""


def write_result(config: RunConfig, built: Built, base: dict[str, Any], run_id: str) -> None:
    """Writes the result of a run that is trained, and its answers before and after; then it is finished.

    Args:
        base: what is known of the model underneath.

    Raises:
        EnvironmentProblem: the folder cannot be written.
    """
    folder, job, data = Path(config.output_dir), built.job, built.data
    step = _take_best(config, job, run_id)
    if gives_scores(job.policy.core):
        settle_padding(job.policy.core, built.tokenizer, data.renderer.stop_ids)
    tuning = component.load("tuning", config.tuning.kind)
    in_float32 = not component.load("optimizers", config.training.optim.kind).in_bfloat16

    def fill(target: Path) -> None:
        if tuning.makes_adapter:
            save_adapter(
                job.policy.model,
                target,
                base,
                starts_at_base=built.tuned.off_is_start != "no",
                system=data.system,
                plain=built.source.plain,
                new_tokens=built.new_tokens,
                adapter_path=built.tuned.adapter_path,
            )
        else:
            _save_model(job.policy.core, built.source, target, in_float32)
            write_origin(target, {"base": base, "system": data.system})
        if data.template is not None:
            built.tokenizer.chat_template = with_default_system(data.template.saved_source, data.system)
        built.tokenizer.save_pretrained(target)
        save_stop_ids(target, data.renderer.stop_ids)

    write_folder(folder / (ADAPTER if tuning.makes_adapter else MODEL), fill, {"step": step, "run": run_id})
    _write_answers(config, built)
    manifest.set_state(folder, "finished")


def _save_model(core: Any, source: ModelSource, target: Path, in_float32: bool) -> None:
    """What was trained as it is, in float32 if asked for; what was not, to the bit as it is stored: it may be held in fewer
    bits than that."""
    trained = {name: parameter for name, parameter in core.named_parameters() if parameter.requires_grad}
    try:
        if len(trained) == len(list(core.parameters())):
            raise NotByName("all of it was trained")
        stored = Stored(core, source.folder, source.name)
        own = {name: p for name, p in trained.items() if name != HEAD or HEAD in stored.tensors}
        changes = [Change((name,), partial(_value, name, parameter.detach())) for name, parameter in own.items()]
        rows = [Change((name,), partial(_stored_value, name)) for name in set(stored.grown_weights()) - own.keys()]
        stored.check([*own, *(name for change in rows for name in change.names)])
    except NotByName:
        _save_whole(core, trained, source, target, in_float32)
        return
    written = stored.rewritten([*changes, *rows], None)
    if len(own) < len(trained):
        written = _with_new_head(written, core, trained[HEAD].detach().cpu())
    write_shards(target, written, SHARD_BYTES)
    save_settings(core, target, "float32" if in_float32 else dtype_name(core.dtype))


def _save_whole(core: Any, trained: Collection[str], source: ModelSource, target: Path, in_float32: bool) -> None:
    """By transformers; what was not trained and is held in fewer bits is taken from the base, loaded again."""
    core.zero_grad(set_to_none=True)
    whole = core
    if in_float32 and any(parameter.dtype != torch.float32 for parameter in core.parameters()):
        # On the CPU: beside the model and its optimizer, a card may have no room for another.
        code = core.is_remote_code()
        scored = gives_scores(core)
        whole = load_model(source, dtype=torch.float32, device="cpu", trust_remote_code=code, scored=scored)
        if scored:
            whole.config = core.config
        grow(whole, core.get_input_embeddings().weight.shape[0])
        for name in trained:
            whole.get_parameter(name).data = core.get_parameter(name).detach().float().cpu()
    with quiet():
        whole.save_pretrained(target)


def _with_new_head(
    written: Iterable[tuple[str, torch.Tensor]], core: Any, head: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of the files, with a head of scores in the place of that of words."""
    words = heads_of_words(core.config, core, core.is_remote_code())
    yield from ((name, value) for name, value in written if name not in words)
    yield HEAD, head


def _value(name: str, value: torch.Tensor, read: Read) -> dict[str, torch.Tensor]:
    del read  # it was trained
    return {name: value.cpu()}


def _stored_value(name: str, read: Read) -> dict[str, torch.Tensor]:
    return {name: read(name)}


def _take_best(config: RunConfig, job: Job, run_id: str) -> int:
    """The step whose weights are the result; they are put into the policy."""
    if not config.training.load_best_checkpoint or job.progress.best_step is None:
        return job.progress.step
    step = job.progress.best_step
    try:
        put_weights(job.policy, job.checkpoints.verified(step, run_id)["weights"])
    except Damaged as error:
        raise UserError(
            str(job.checkpoints.path(step)),
            f"the best checkpoint is damaged: {error}",
            "whole files",
            "load_best_checkpoint=false, with --resume",
        ) from None
    return step


def _write_answers(config: RunConfig, built: Built) -> None:
    """Answers to the sample prompts, of the model before and of the result."""
    folder = Path(config.output_dir)
    if prompts := config.training.sample_prompts:
        before = {line["prompt"]: line["answer"] for line in read_lines(folder / SAMPLES) if line["step"] == 0}
        after = answers(built, prompts)
        both = [
            {"prompt": prompt, "reference": None, "before": before.get(prompt), "after": text}
            for prompt, text in zip(prompts, after, strict=True)
        ]
        with faults_told(folder / ANSWERS, *GOES_ON):
            write_file(folder / ANSWERS, as_json(both))


def sampler(config: RunConfig, built: Built, recorder: Recorder) -> Callable[[int], None]:
    """Answers the sample prompts on the main process, greedily, by the stock attention."""
    prompts, job = config.training.sample_prompts, built.job

    def answer(step: int) -> None:
        if prompts and job.engine.main:
            for prompt, text in zip(prompts, answers(built, prompts), strict=True):
                recorder.sample(step, prompt, text)

    return answer


def answers(built: Built, prompts: Sequence[str], max_new_tokens: int = ANSWER_TOKENS) -> list[str]:
    """Greedy answers to requests, with the policy as it is."""
    data, policy = built.data, built.job.policy
    system = [Message("system", data.system)] if data.system else []
    ids = [data.renderer.prompt_ids([*system, Message("user", prompt)]) for prompt in prompts]
    stops = data.renderer.stop_ids
    with stock_attention(policy.model), seeded(0), policy.computing():
        found = generate(policy.model, built.tokenizer, ids, max_new_tokens=max_new_tokens, stop_ids=stops)
    return [item.text for item in found]

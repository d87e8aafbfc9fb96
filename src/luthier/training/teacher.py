"""The teacher of a run: what is known of it before it is loaded, whether it fits, and what is kept of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from luthier import component
from luthier.component import ComponentConfig
from luthier.data.dataset.prepare import Prepared
from luthier.data.dataset.samples import SampleSet
from luthier.data.steps.kept_reference import KeptReference
from luthier.data.steps.layout import Layout
from luthier.engines import Engine
from luthier.errors import EnvironmentProblem, UserError, excerpt
from luthier.inference.opened import open_model
from luthier.models.adapters import adapter_hash, embedding_rows, trained_quantization
from luthier.models.flat import prove, use_flat_attention
from luthier.models.folder import summarise
from luthier.models.load import fingerprint
from luthier.models.precision import DTYPES, dtype_name
from luthier.models.reading import context_length, load_config, load_tokenizer
from luthier.models.source import ModelSource
from luthier.models.sources.resolve import named, resolve
from luthier.objectives import TEACHER as KEY
from luthier.objectives import Teaching
from luthier.policy.policy import Policy
from luthier.policy.teacher import Teacher
from luthier.runs.at_step import at_step, hash_of_adapter
from luthier.runs.checkpoint import TENSORS
from luthier.system.files import sha256
from luthier.system.words import counted, human_bytes
from luthier.training.job import Job
from luthier.training.kept import numbers_of, path_of
from luthier.training.reference import sets_of
from luthier.tuning import Tuned
from luthier.types import NO_TARGET


@dataclass(frozen=True)
class KnownTeacher:
    """What its files say."""

    how: Teaching
    source: ModelSource
    config: Any
    """of transformers"""
    tokenizer: Any
    base: Mapping[str, Any]
    """fingerprints of the model underneath"""
    adapter: str | None
    """a hash of the adapter on it"""
    step: str | None
    """a hash of the checkpoint whose weights are put into it"""
    quantization: Mapping[str, Any] | None
    trust_remote_code: bool

    @property
    def hash(self) -> str:
        """What tells it from others."""
        base = [self.base["config_hash"], self.base["weights_hash"]]
        known = json.dumps([*base, self.adapter, self.step, self.quantization], sort_keys=True)
        return hashlib.blake2b(known.encode(), digest_size=16).hexdigest()

    @property
    def rows(self) -> int:
        """How many ids it has logits for."""
        own = int(self.config.get_text_config().vocab_size)
        return max(own, embedding_rows(self.source.adapter)) if self.source.adapter is not None else own

    def dtype(self, of_run: torch.dtype) -> torch.dtype:
        """In which it is held and computes."""
        return of_run if self.how.dtype == "auto" else DTYPES[self.how.dtype]

    def held_bytes(self, of_run: torch.dtype, streamed: bool) -> int:
        """Estimated, beside the policy while that is trained: of all of it, or where its likeliest tokens are kept nothing. Of data that
        stream nothing is kept: it is asked in every step.
        """
        if self.how.top_k is not None and not streamed:
            return 0
        return self.stored_bytes(self.dtype(of_run))

    def stored_bytes(self, dtype: torch.dtype) -> int:
        """Estimated, of its weights; quantized ones count as they are stored, which is more."""
        stored = summarise(self.source.folder, self.source.name)
        return stored.bytes if self.quantization else stored.parameters * dtype.itemsize

    def layout(self, of_run: Any, dtype: torch.dtype, device: torch.device) -> Layout:
        """Flat where the policy runs flat and its own proof says that it may."""
        return "flat" if of_run == "flat" and prove(self.config, self.dtype(dtype), device).flat else "padded"

    def is_beginning_of(self, tuned: Tuned, base: Mapping[str, Any], of_run: torch.dtype) -> bool:
        """Whether it is the policy as a run begins: the same base, held alike, with the same adapter or none."""
        same = all(self.base[name] == base[name] for name in ("config_hash", "weights_hash"))
        alike = self.dtype(of_run) == of_run and self.quantization == base["quantization"]
        if tuned.adapter_path is not None:
            begun = self.adapter == hash_of_adapter(tuned.adapter_path)
        else:
            begun = self.adapter is None and self.step is None
            begun &= tuned.off_is_start != "no" or not hasattr(tuned.model, "disable_adapter")
        return same and alike and begun


def known_teacher(how: Teaching | None, trust_remote_code: bool) -> KnownTeacher | None:
    """The teacher that an objective names, found and fetched, but not loaded.

    Raises:
        UserError: there is no such model.
        EnvironmentProblem: it cannot be fetched.
    """
    if how is None:
        return None
    with named(KEY):
        step = at_step(how.teacher)
        source = resolve(str(step.run) if step is not None else how.teacher, None, trust_remote_code)
        adapter = None
        if source.adapter is not None:
            adapter = hash_of_adapter(how.teacher) if step is not None else adapter_hash(source.adapter)
        elif step is not None and how.quantization is not None:
            raise UserError(
                "",
                f"{how.teacher} has weights of its own, which are put into a model as they are",
                "a folder of the whole model, which can be quantized as it is loaded",
                f"{KEY}_quantization=null; or luthier merge {how.teacher} --output teacher, and {KEY}=teacher",
            )
        return KnownTeacher(
            how,
            source,
            load_config(source.folder, trust_remote_code),
            load_tokenizer(source.words, trust_remote_code),
            fingerprint(source).as_dict(),
            adapter,
            sha256(step.folder / TENSORS) if step is not None else None,
            _held(how, source),
            trust_remote_code,
        )


def _asked(how: Teaching) -> ComponentConfig | None:
    """The quantization that is asked for, with its defaults."""
    if how.quantization is None:
        return None
    found: ComponentConfig = component.load("quantization", how.quantization).Config()
    return found


def _held(how: Teaching, source: ModelSource) -> Mapping[str, Any] | None:
    """How the weights are held; as they were where an adapter was trained on them."""
    trained = trained_quantization(source.adapter) if source.adapter is not None else None
    asked = _asked(how)
    if trained is not None and asked is not None and trained != asked.model_dump(mode="json"):
        found = f"the adapter was trained on a base held in {trained['kind']}"
        raise UserError("", found, "that, or none", f"{KEY}_quantization=null")
    return trained or (asked.model_dump(mode="json") if asked is not None else None)


def refuse_unfit(known: KnownTeacher | None, model: str, tokenizer: Any, data: Prepared, engine: Engine) -> None:
    """Every id must be the same token for teacher and model, but tokens that were added to one of the tokenizers and that no row
    has. The embeddings may have more rows than there are tokens.

    Raises:
        UserError: the teacher reads other tokens, or no rows of this length.
        EnvironmentProblem: the processes see different teachers.
    """
    if known is None:
        return
    if engine.sum([float(engine.from_main(known.hash) != known.hash)])[0]:
        raise EnvironmentProblem(
            KEY, "the processes see different teachers", "the same model on all machines", "fetch the model again"
        )
    sets = [one for one in (data.train, data.eval) if one is not None and len(one)]
    theirs, ours = (
        {number: token for token, number in one.get_vocab().items()} for one in (known.tokenizer, tokenizer)
    )
    differing = {number for number in theirs.keys() | ours.keys() if theirs.get(number) != ours.get(number)}
    added = {number for one in (known.tokenizer, tokenizer) for number in one.get_added_vocab().values()}
    if wrong := differing - added or (differing & _ids(sets) if differing else set()):
        first = min(wrong)
        said, meant = (excerpt(names[first], 40) if first in names else "no token" for names in (theirs, ours))
        raise UserError(
            KEY,
            f"{known.how.teacher} has another tokenizer than {model}: id {first} is {said} there, and {meant} here "
            f"({counted(len(wrong), 'id')} of {len(ours):,} differ)",
            "a teacher with the tokenizer of the model",
            "a teacher of the same family, or model.path of the teacher's",
        )
    context, longest = context_length(known.config), max(int(one.lengths.max()) for one in sets)
    if context is not None and longest > context:
        raise UserError(
            KEY,
            f"{known.how.teacher} reads at most {counted(context, 'token')}, the longest row has {longest:,}",
            "rows that the teacher can read",
            f"data.max_length={context} data.on_long_row=truncate",
        )


def _ids(sets: Sequence[SampleSet]) -> set[int]:
    """Of all tokens that are read or learned."""
    samples = (one[index] for one in sets for index in range(len(one)))
    found = {int(number) for one in samples for number in {*one.input_ids.tolist(), *one.targets.tolist()}}
    return found - {NO_TARGET}


def make_teacher(
    known: KnownTeacher,
    policy: Policy,
    tuned: Tuned,
    base: Mapping[str, Any],
    dtype: torch.dtype,
    layout: Layout,
    say: Callable[[str], None],
) -> Teacher:
    """The teacher of a policy: loaded, but where its likeliest tokens may be kept already.

    Args:
        base: what is known of the policy's model.
        dtype: of the run.
    """
    device, own = policy.core.device, known.dtype(dtype)
    words = min(known.rows, int(policy.core.get_input_embeddings().weight.shape[0]))
    itself = known.is_beginning_of(tuned, base, dtype)
    opens = partial(_opened, known, own, device, layout == "flat")
    teacher = Teacher(known.how, words, opens, flat=layout == "flat", is_beginning=itself)
    size = human_bytes(known.stored_bytes(own))
    said = f"teacher: {known.how.teacher}{', what the run begins with' if itself else ''}"
    held = f"held in {known.quantization['kind']}, " if known.quantization else ""
    say(f"{said}, {held}in {dtype_name(own)}, {layout}, {size}")
    if known.how.top_k is None:
        teacher.policy.eval()  # here, where what is wrong with it is told before anything is written
    return teacher


def _opened(known: KnownTeacher, dtype: torch.dtype, device: torch.device, flat: bool) -> Policy:
    with named(KEY):
        opened = open_model(
            known.how.teacher,
            dtype=dtype_name(dtype),
            device=device,
            quantization=_asked(known.how),
            trust_remote_code=known.trust_remote_code,
        )
    policy = opened.policy()
    if flat:
        use_flat_attention(policy.core)
    return policy


def keep_teacher(job: Job, known: KnownTeacher, say: Callable[[str], None]) -> None:
    """Gives a job the teacher's likeliest tokens, where the objective asks for these; the teacher is not needed then.

    Data that stream are scored as they come.

    Raises:
        EnvironmentProblem: the cache cannot be written.
    """
    teacher, count = job.policy.teacher, known.how.top_k
    assert isinstance(teacher, Teacher)
    if count is None or job.samples.neighbours is not None:
        return
    count = min(count, teacher.words)
    for purpose, samples in sets_of(job).items():

        def said(purpose: str = purpose, samples: SampleSet = samples) -> None:
            say(f"the teacher's likeliest tokens of {counted(len(samples), 'answer')} ({purpose}): computed once")

        parts = {
            "samples": samples.fingerprint,
            "teacher": known.hash,
            "asked": [count, known.how.temperature, teacher.words],
            "layout": [job.layout, teacher.flat, job.max_tokens, known.how.dtype, str(job.policy.compute_dtype)],
        }
        path = path_of("teacher", job, parts)
        numbers = numbers_of(job, samples, path, 2 * count + 2, teacher.numbers, job.layout, said)
        job.reference[purpose] = KeptReference(samples, numbers, "taught")
    teacher.close()

"""From a model's folder to a model, strictly: what does not fit is an error that names it, never a warning.

transformers fills missing weights with random numbers and says so in a log line; here that stops.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from luthier.errors import EnvironmentProblem, UserError, excerpt
from luthier.kernels.experts import use_experts
from luthier.models.checks import (
    refuse_misread,
    refuse_unquantized,
    stored_weights,
)
from luthier.models.dequantized import refuse_unpacked_wrong
from luthier.models.folder import TOKENIZER_FILES, check_folder, tensors
from luthier.models.patches.bitsandbytes_on_cpu import alike_in_training_and_scoring
from luthier.models.patches.plain_linear import plain_linear
from luthier.models.reading import install, load_config
from luthier.models.score_head import (
    WEIGHT,
    head_weights,
    heads_of_words,
    read_head,
    refuse_another_head,
    refuse_without_scores,
)
from luthier.models.settings import read_json
from luthier.models.source import ModelSource
from luthier.quantization import Quantization
from luthier.system.faults import raise_fault
from luthier.system.quiet import hush

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VOLATILE_KEYS = ("transformers_version", "_name_or_path", "_model_name_or_path", "torch_dtype", "dtype", "use_cache")
_SAMPLED_BYTES = 4096


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without progress bars, which would run through ours, and without warnings of what is an error
    here."""
    from tqdm.std import tqdm
    from transformers.utils import logging

    shown, verbosity, begin = logging.is_progress_bar_enabled(), logging.get_verbosity(), tqdm.__init__
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    tqdm.__init__ = partialmethod(begin, disable=True)  # it has one of its own where a GGUF file is read
    try:
        yield
    finally:
        tqdm.__init__ = begin
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def load_model(
    source: ModelSource | Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    quantization: Quantization | None = None,
    quantized_from: torch.dtype | None = None,
    trust_remote_code: bool = False,
    scored: bool = False,
) -> PreTrainedModel:
    """A causal language model in eval mode, with exactly the weights of its folder.

    Args:
        source: the base of a resolved source, or its folder. An adapter is not put on here.
        dtype: of the weights (with `quantization`: of what stays unquantized, and of the computation).
        device: where the weights go, without a detour over the CPU's memory.
        quantization: holds the linear layers in fewer bits.
        quantized_from: with `quantization`, the dtype in which all weights are taken from the files first; by default
            `dtype`. Codes and scales depend on it.
        scored: with a head of scores (`models/score_head.py`), in float32; where the files hold none its values are chance.

    Raises:
        UserError: the folder is incomplete, weights are missing, left over, of the wrong shape, or not finite.
        EnvironmentProblem: not enough memory, or a package is missing.
    """
    folder, name = (source.folder, source.name) if isinstance(source, ModelSource) else (source, str(source))
    check_folder(folder, name, trust_remote_code)
    options: dict[str, Any] = {}
    if quantization is not None:
        options["quantization_config"] = quantization.loading_config(dtype)
    if quantization is not None or torch.device(device).type != "cpu":
        options["device_map"] = {"": torch.device(device)}
    config, kind = _kind_of(load_config(folder, trust_remote_code), name, scored)
    hush()
    plain = plain_linear(config.model_type) if quantization is not None else nullcontext()
    with _failures_explained(folder, name, dtype), quiet(), plain:
        model, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=quantized_from or dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, with their names, and are refused below
            **options,
        )
    if scored:
        report = _with_scores(report, model, config, folder, name, trust_remote_code)
    refuse_misfits(report, name)
    _refuse_non_finite(model.named_parameters() if quantization is None else stored_weights(folder, name), name)
    refuse_misread(model, folder, name)
    if type(options.get("quantization_config")).__name__ == "BitsAndBytesConfig":
        refuse_unquantized(model, name)
        refuse_unpacked_wrong(model, name)
        alike_in_training_and_scoring(model)
    if quantized_from is not None:
        _hold_rest(model, quantized_from, dtype)
    use_experts(model)
    return model.eval()


def _kind_of(config: Any, name: str, scored: bool) -> tuple[Any, Any]:
    """The configuration to load a model with, and transformers' class for it. Raises UserError where there is none with scores."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if not scored:
        return config, AutoModelForCausalLM
    refuse_without_scores(config, name)
    config.num_labels = 1
    return config, AutoModelForSequenceClassification


def _hold_rest(model: PreTrainedModel, quantized_from: torch.dtype, dtype: torch.dtype) -> None:
    """What is not quantized, in `dtype`; a head of scores stays in float32."""
    head = head_weights(model)
    for weight in (*model.parameters(), *model.buffers()):
        if weight.dtype == quantized_from and id(weight) not in head:
            weight.data = weight.data.to(dtype)


def _with_scores(
    report: dict[str, Any], model: PreTrainedModel, config: Any, folder: Path, name: str, trust_remote_code: bool
) -> dict[str, Any]:
    """transformers' report of the loading of a model of scores, without what is to be so: a new head, and one of words left.

    Raises:
        UserError: its head is of another kind.
    """
    refuse_another_head(model, name)
    model.score.float()
    read_head(model, folder, name)
    kept = {"missing_keys": {WEIGHT}, "unexpected_keys": heads_of_words(config, model, trust_remote_code)}
    return report | {kind: [key for key in report.get(kind) or () if key not in left] for kind, left in kept.items()}


@contextmanager
def _failures_explained(folder: Path, name: str, dtype: torch.dtype) -> Iterator[None]:
    """What transformers fails with, as errors that say what to do."""
    try:
        yield
    except ImportError as error:
        raise_fault(name, error)
        raise EnvironmentProblem(
            name, excerpt(str(error), 200), "the package that this model needs", install(error)
        ) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise EnvironmentProblem(
            name,
            "not enough memory to load the model",
            f"about {_need(folder, name, dtype)}",
            "model.quantization=nf4, dtype=bfloat16, or a smaller model",
        ) from error
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        raise_fault(name, error)
        raise UserError(
            name,
            f"transformers cannot load {folder}: {excerpt(str(error), 300)}",
            "a causal language model that it knows",
            "download the model again, or another model",
        ) from error


def _need(folder: Path, name: str, dtype: torch.dtype) -> str:
    from luthier.models.folder import summarise
    from luthier.system.words import human_bytes

    return human_bytes(summarise(folder, name).parameters * dtype.itemsize)


def refuse_misfits(report: dict[str, Any], name: str) -> None:
    """Refuses weights that are missing, left over or of a wrong shape, by transformers' report of a loading."""
    for kind, what in (
        ("missing_keys", "weights that the model needs are not in its files"),
        ("unexpected_keys", "weights in its files have no place in the model"),
        ("mismatched_keys", "weights have another shape than the model's config says"),
    ):
        keys = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in report.get(kind) or ())
        if keys:
            raise UserError(
                name,
                f"{len(keys)} {what}; the first is {keys[0]}",
                "config.json and safetensors of one and the same model",
                "download the model again, or name the folder that save_pretrained wrote",
            )
    if errors := report.get("error_msgs"):
        raise UserError(
            name, excerpt(str(next(iter(errors))), 200), "weights that fit the model", "download the model again"
        )


@torch.no_grad()
def _refuse_non_finite(weights: Iterable[tuple[str, torch.Tensor]], name: str) -> None:
    """A sum is finite only if every summand is (a quarter of the cost of looking at each); an overflowing sum is
    looked at again. Of a base in fewer bits the files are looked at: codes are finite whatever they stand for."""
    bad = [
        key
        for key, weight in weights
        if weight.is_floating_point()
        and weight.itemsize > 1
        and not weight.sum().isfinite()
        and not weight.isfinite().all()
    ]
    if bad:
        raise UserError(
            name,
            f"{len(bad)} weights hold NaN or infinity, the first is {bad[0]}",
            "finite numbers",
            "download the model again; a float16 copy of a bfloat16 model overflows: use the original",
        )


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """What an adapter remembers of its base, so that another model is not taken for it. JSON-able by `as_dict`."""

    name: str
    """as written in a config; resolves to the same base"""
    commit: str | None
    config_hash: str
    """of config.json without keys that say nothing of the architecture"""
    weights_hash: str
    """of names, types and shapes of all tensors, and of a sample of their bytes; independent of how they are cut into
    files"""
    tokenizer_hash: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def fingerprint(source: ModelSource | Path) -> BaseInfo:
    """What tells a base from another, in a few milliseconds: it reads headers and 32 samples of 4 kB, not the weights.

    Raises:
        UserError: the folder is incomplete.
    """
    if isinstance(source, Path):
        source = ModelSource(source, str(source.resolve()), None, "folder")
    config = {
        key: value
        for key, value in read_json(source.folder / "config.json", source.name).items()
        if key not in _VOLATILE_KEYS
    }
    return BaseInfo(
        name=source.name,
        commit=source.commit,
        config_hash=_hash(json.dumps(config, sort_keys=True).encode()),
        weights_hash=_weights_hash(source.folder, source.name),
        tokenizer_hash=_hash(
            b"".join(
                file.name.encode() + file.read_bytes()
                for part in TOKENIZER_FILES
                if (file := source.folder / part).is_file()
            )
        ),
    )


def _weights_hash(folder: Path, name: str) -> str:
    """Of the names, types and shapes of all tensors, and of some bytes in the middle of each."""
    digest = hashlib.blake2b(digest_size=16)
    with ExitStack() as stack:
        files: dict[Path, BinaryIO] = {}
        for tensor in sorted(tensors(folder, name), key=lambda tensor: tensor.name):
            digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}\n".encode())
            if tensor.file not in files:
                files[tensor.file] = stack.enter_context(tensor.file.open("rb"))
            middle = tensor.start + max(0, tensor.end - tensor.start - _SAMPLED_BYTES) // 2
            files[tensor.file].seek(middle)
            digest.update(files[tensor.file].read(min(_SAMPLED_BYTES, tensor.end - middle)))
    return digest.hexdigest()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()

"""Whether a model may run flat is proven, not looked up.

Architectures with convolutions, state-space layers, windows, soft-caps or old attention code accept flat input and leak between
documents without an error. So a small random twin of the model (its own classes, two layers or one of each kind, its windows made
short) is asked: change document A, and document B's logits must not move; B flat must be B alone by the stock attention. Then,
whether documents that begin alike may share their first tokens: shared must be what apart is.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers

from luthier.kernels import attention, experts
from luthier.models import architectures
from luthier.system.faults import raise_fault
from luthier.system.files import write_file
from luthier.system.paths import cache_dir, cache_written

VOCABULARY = 128
WINDOW_TOKENS = 8
LENGTHS = (13, 5, 21, 1, 9)
"""Documents of the proof: shorter and longer than the window."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of logits, relative to the largest logit: rounding of the dtype. Isolation is held to that of float32."""

GRADIENTS = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 5e-2}
"""Largest difference of a weight's gradient, relative to its norm: a few times what rounding gives on a CPU."""

MOST_NUMBERS = 2**22
"""In a weight whose gradient is looked at: twins of some architectures keep their wide layers."""

NEXT_TO_NOTHING = 1e-3
"""Of the largest norm of a gradient: what is smaller is rounding of what should be zero, such as that of a key's bias."""

FASTER_PATHS = ("causal-conv1d", "flash-attn", "flash-linear-attention", "fla-core", "kernels", "mamba-ssm")

_SOURCES = [
    hashlib.sha256(file.read_bytes()).hexdigest()
    for file in (
        Path(__file__),
        Path(attention.__file__),
        Path(experts.__file__),
        *sorted(Path(architectures.__file__).parent.rglob("*.py")),
    )
]
"""A verdict holds for the code that gave it."""

WEIGHT_STD = 0.15
"""Large enough that a leak moves the logits far beyond rounding (the usual 0.02 would hide it)."""


NO_HOOK = "its attention cannot be replaced"


@dataclass(frozen=True)
class Verdict:
    """What the proof found. Figures are relative to the largest logit; None where it did not get so far."""

    flat: bool
    why: str
    isolation: float | None = None
    """how far document B's logits moved when document A changed"""
    agreement: float | None = None
    """how far each document flat is from itself alone under the stock attention"""
    gradients: float | None = None
    """how far the gradients of documents flat are from those of documents alone"""
    shares: bool = False
    """whether documents that begin alike may share their first tokens"""
    why_apart: str = ""
    """what speaks against it, of a model that may run flat"""


@contextmanager
def stock_attention(model: Any) -> Iterator[None]:
    """Inside, the model attends by transformers' own code: for generation and padded batches."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = core.config._attn_implementation
    if before != attention.NAME:
        yield
        return
    core.set_attn_implementation(core.luthier_stock_attention)
    try:
        yield
    finally:
        core.set_attn_implementation(before)


def use_flat_attention(model: Any) -> None:
    """From here on the model takes flat batches. Raises ValueError where its code has no attention hook."""
    attention.register()
    model.luthier_stock_attention = model.config._attn_implementation
    if not model._can_set_attn_implementation():  # else transformers warns, and leaves it as it is
        raise ValueError(NO_HOOK)
    model.set_attn_implementation(attention.NAME)
    if model.config._attn_implementation != attention.NAME:
        raise ValueError(NO_HOOK)


def prove(config: Any, dtype: torch.dtype, device: torch.device | str = "cpu") -> Verdict:
    """The verdict for an architecture's configuration, from the cache where the same was proven before.

    Args:
        config: the model's transformers configuration (its sizes are reduced for the twin).
        dtype: what will be computed in; the proof runs in float32 and in this.
        device: where.
    """
    device = torch.device(device)
    twin_config = reduced(config)
    key = json.dumps(
        [
            twin_config.to_dict(),
            str(dtype),
            _device_name(device),
            _SOURCES,
            _faster_paths(),
            torch.__version__,
            transformers.__version__,
        ],
        default=str,
        sort_keys=True,
    )
    path = cache_dir() / "flat" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if path.exists():
        return Verdict(**json.loads(path.read_text()))
    verdict = _prove(twin_config, torch.float32, device)
    if verdict.flat and dtype != torch.float32:
        low = _prove(twin_config, dtype, device)
        verdict = replace(verdict if low.flat else low, shares=low.shares, why_apart=low.why_apart)
    with cache_written(path):
        path.parent.mkdir(exist_ok=True)
        write_file(path, json.dumps(asdict(verdict)).encode())
    return verdict


def _device_name(device: torch.device) -> str:
    """A verdict holds for one kind of card: which attention path runs depends on it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _faster_paths() -> dict[str, str]:
    """Packages that transformers computes by where they are installed, and their versions."""
    installed = {}
    for package in FASTER_PATHS:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def reduced(config: Any) -> Any:
    """A configuration of the same code paths, small: few layers (one of each kind), few heads, short windows, a small vocabulary."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    layers = text.num_hidden_layers
    kinds = getattr(text, "layer_types", None)
    keep = sorted({kinds.index(kind) for kind in kinds}) if kinds else list(range(min(2, layers)))
    if len(keep) == 1:
        keep = list(range(min(2, layers)))
    for name, value in list(text.to_dict().items()):
        if isinstance(value, (list, tuple)) and len(value) == layers and layers > 1:
            setattr(text, name, [value[i] for i in keep])
        elif (
            isinstance(value, int)
            and not isinstance(value, bool)
            and "window" in name
            and value > WINDOW_TOKENS
            and "pattern" not in name
        ):
            setattr(text, name, WINDOW_TOKENS)
        elif isinstance(value, int) and name.endswith("chunk_size") and value > 2 * WINDOW_TOKENS:
            setattr(text, name, 2 * WINDOW_TOKENS)
    text.num_hidden_layers = len(keep)
    text.vocab_size = VOCABULARY
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(text, name, None) is not None:
            setattr(text, name, 0)
    _fewer_heads(text)
    return small


def _fewer_heads(text: Any) -> None:
    """Keeps head size and the ratio of query to key heads (they choose the kernel), reduces their number and the MLP."""
    heads, kv = getattr(text, "num_attention_heads", None), getattr(text, "num_key_value_heads", None)
    hidden = getattr(text, "hidden_size", None)
    has_other_sizes = any(name.startswith(("mamba", "conv_dim", "linear_")) for name in text.to_dict())
    if not isinstance(heads, int) or not isinstance(hidden, int) or hidden <= 256 or has_other_sizes:
        return
    head_size = getattr(text, "head_dim", None) or hidden // heads
    ratio = heads // kv if isinstance(kv, int) and kv and heads % kv == 0 else 1
    text.num_attention_heads = 2 * ratio
    if isinstance(kv, int):
        text.num_key_value_heads = 2
    text.hidden_size = head_size * text.num_attention_heads
    for name in ("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size"):
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, 128)


def twin(config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A random model of the configuration, the same at every call; no generator's state is touched."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0.0, WEIGHT_STD, generator=generator)
    experts.use_experts(model)
    return model.to(device, dtype).eval()


def _prove(config: Any, dtype: torch.dtype, device: torch.device) -> Verdict:
    try:
        model = twin(config, dtype, device)
    except (ValueError, RuntimeError, TypeError, AttributeError, KeyError, ZeroDivisionError, ImportError) as error:
        return _not_flat("no small twin of this architecture could be made", error)
    generator = torch.Generator().manual_seed(2)
    documents = [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in LENGTHS]
    changed = [(documents[0] + 1 + torch.arange(LENGTHS[0])) % (VOCABULARY - 1) + 1, *documents[1:]]
    try:
        alone = _run(model, lambda: _alone(model, documents, device))
        padded = _run(model, lambda: _padded(model, documents, device))
    except BREAKS as error:
        return _not_flat("its twin does not run by the stock attention", error)
    try:
        use_flat_attention(model)
        flat = _run(model, lambda: _flat(model, documents, device))
        with torch.no_grad():
            moved = _flat(model, changed, device)
    except BREAKS as error:
        return _not_flat("it does not take flat batches", error, _doubt(padded, alone, dtype))
    found = _Figures(
        isolation=_apart(flat.logits[1:], moved[1:], alone),
        agreement=_apart(flat.logits, alone.logits, alone),
        gradients=_gradients_apart(flat, alone),
    )
    verdict = found.verdict(dtype)
    if not verdict.flat:
        return replace(verdict, why=verdict.why + _doubt(padded, alone, dtype))
    apart = _why_apart(model, documents, dtype, device)
    return replace(verdict, shares=not apart, why_apart=apart)


def _why_apart(model: Any, documents: list[torch.Tensor], dtype: torch.dtype, device: torch.device) -> str:
    """What speaks against sharing the first tokens of documents; "" for nothing."""
    tail = documents[1]
    pairs = [(documents[2], 17), (documents[2], 3), (documents[0], 12)]  # more and less than the window
    answers = [torch.cat([first[:shared], tail[: 1 + shared % 4]]) for first, shared in pairs]
    together = [documents[2], answers[0], answers[1], documents[0], answers[2]]
    shared = [0, 17, 3, 0, 12]
    try:
        once = _run(model, lambda: _flat(model, together, device, shared))
    except BREAKS as error:
        return _not_flat("it does not take documents that share tokens", error).why
    apart = _run(
        model,
        lambda: [logits[count:] for logits, count in zip(_flat(model, together, device), shared, strict=True)],
    )
    for what, found, allowed in (
        ("logits", _apart(once.logits, apart.logits, apart), TOLERANCE[dtype]),
        ("gradients", _gradients_apart(once, apart), GRADIENTS[dtype]),
    ):
        if not found <= allowed:
            return f"{what} of documents that share tokens differ from those of documents apart (by {found:.1e})"
    return ""


BREAKS = (ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError)
"""What architectures raise for input that they were not written for."""


@dataclass(frozen=True)
class _Pass:
    """One way through the twin: logits [L, V] of each document, and the gradient of a random projection of all of them."""

    logits: list[torch.Tensor]
    gradients: dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Figures:
    isolation: float
    agreement: float
    gradients: float

    def verdict(self, dtype: torch.dtype) -> Verdict:
        wrong = None
        if not self.isolation <= TOLERANCE[torch.float32]:
            wrong = f"documents leak into one another (a change moved its neighbour's logits by {self.isolation:.1e})"
        elif not self.agreement <= TOLERANCE[dtype]:
            wrong = f"documents flat differ from documents alone (by {self.agreement:.1e})"
        elif not self.gradients <= GRADIENTS[dtype]:
            wrong = f"gradients of documents flat differ from those of documents alone (by {self.gradients:.1e})"
        said = f"isolation {self.isolation:.0e}, agreement {self.agreement:.0e}, gradients {self.gradients:.0e}"
        why = f"proven in {str(dtype).removeprefix('torch.')}: {said}" if wrong is None else wrong
        return Verdict(wrong is None, why, self.isolation, self.agreement, self.gradients)


def _doubt(padded: _Pass, alone: _Pass, dtype: torch.dtype) -> str:
    """Of the layout that is taken where flat is not: what is to be said, if there is something."""
    apart = _gradients_apart(padded, alone)
    if apart <= GRADIENTS[dtype]:
        return ""
    return f"; padded, its gradients differ too (by {apart:.1e}): max_tokens_per_micro_batch=1 takes each row alone"


def _not_flat(why: str, error: Exception, doubt: str = "") -> Verdict:
    """The verdict where code of the architecture has failed. Raises EnvironmentProblem where the machine has."""
    raise_fault("the proof of the layout", error)
    said = (str(error).splitlines() or [""])[0][:120]
    said = f"it lacks {said}" if isinstance(error, (KeyError, AttributeError)) else said
    return Verdict(False, f"{why}{': ' if said else ''}{said}{doubt}")


def _run(model: Any, compute: Callable[[], list[torch.Tensor]]) -> _Pass:
    """Logits, and gradients of their projection on random directions, the same for each way.

    Of small weights: the embeddings are among them, whose gradient has come through every layer."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.numel() <= MOST_NUMBERS)
    logits, generator = compute(), torch.Generator().manual_seed(3)
    directions = [torch.randn(each.shape, generator=generator).to(each) for each in logits]
    model.zero_grad()
    torch.autograd.backward(logits, directions)
    found = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return _Pass([each.detach() for each in logits], found)


def _apart(some: list[torch.Tensor], others: list[torch.Tensor], alone: _Pass) -> float:
    """The largest difference of logits, relative to the largest logit."""
    scale = max(float(logits.abs().max()) for logits in alone.logits)
    return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True)) / scale


def _gradients_apart(one: _Pass, alone: _Pass) -> float:
    """The largest difference of a weight's gradient, relative to its norm; weights whose gradient is next to nothing are left out."""
    norms = {name: float(gradient.norm()) for name, gradient in alone.gradients.items()}
    counted = [name for name, norm in norms.items() if norm >= NEXT_TO_NOTHING * max(norms.values())]
    return max(float((one.gradients[name] - alone.gradients[name]).norm()) / norms[name] for name in counted)


def _alone(model: Any, documents: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    return [model(input_ids=document[None].to(device), use_cache=False).logits[0].float() for document in documents]


def _padded(model: Any, documents: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True).to(device)
    mask = torch.arange(ids.shape[1], device=device) < torch.tensor([[len(each)] for each in documents], device=device)
    logits = model(input_ids=ids, attention_mask=mask.to(torch.int64), use_cache=False).logits.float()
    return [row[: len(document)] for row, document in zip(logits, documents, strict=True)]


def _flat(
    model: Any, documents: list[torch.Tensor], device: torch.device, shared: Sequence[int] | None = None
) -> list[torch.Tensor]:
    """Logits of what stands in the row of each document; `shared`: how many tokens of each do not."""
    shared = shared or [0] * len(documents)
    own = [document[count:] for document, count in zip(documents, shared, strict=True)]
    places = [torch.arange(count, len(document)) for document, count in zip(documents, shared, strict=True)]
    lengths = [len(each) for each in own]
    logits = model(
        input_ids=torch.cat(own)[None].to(device),
        position_ids=torch.cat(places)[None].to(device),
        use_cache=False,
        **attention.document_arguments(lengths, [len(document) for document in documents], device),
    ).logits[0]
    return list(logits.float().split(lengths))

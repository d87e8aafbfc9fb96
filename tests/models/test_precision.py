"""What adapters keep for the backward pass under autocast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from luthier import config as configuration
from luthier.data.steps.layout import micro_batches
from luthier.engines import make_engine
from luthier.models.precision import leave_casts_to_autocast
from luthier.policy.policy import Policy
from luthier.training import build
from tests.helpers.jobs import make_config, make_policy, make_samples
from tests.helpers.tiny_models import save_twin


def kept_and_gradient(policy: Policy) -> tuple[int, torch.Tensor]:
    """Bytes of activations that are kept for the backward pass, and all gradients in one vector."""
    samples = make_samples((60, 40))
    (batch,) = micro_batches(samples, [0, 1], layout="flat", max_tokens=512, step=0)
    held = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept = dict[int, int]()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = -policy(batch).logps.sum()
    loss.backward()
    return sum(kept.values()), torch.cat([p.grad.flatten() for p in policy.parameters() if p.requires_grad])


@pytest.mark.parametrize("dropout", ["lora_dropout=0.0", "lora_dropout=0.1"])
def test_inputs_of_adapters_are_not_widened_and_narrowed_again(dropout: str, tmp_path: Path) -> None:
    """Every gradient is the same to the bit, and a tenth less is kept."""
    settings = make_config(tmp_path, dropout)
    wide, narrow = (make_policy(settings, dtype=torch.bfloat16).train() for _ in range(2))
    leave_casts_to_autocast(narrow)
    kept, gradient = kept_and_gradient(wide)
    less, same = kept_and_gradient(narrow)
    assert torch.equal(gradient, same)
    assert gradient.abs().max() > 0
    assert less < 0.95 * kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_leaves_casts_to_autocast(dtype: torch.dtype, tmp_path: Path) -> None:
    save_twin(tmp_path / "model", "llama")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Say 1.", "completion": "1!"}\n')
    keys = [f"model={tmp_path}/model", f"data={tmp_path}/rows.jsonl", f"output_dir={tmp_path}/run"]
    job = build.build(configuration.load(None, keys), make_engine("auto", torch.device("cpu")), dtype).job
    casts = {m.cast_input_dtype_enabled for m in job.policy.modules() if hasattr(m, "cast_input_dtype_enabled")}
    assert casts == {dtype == torch.float32}

"""Losses beside those of trl: the same model, ids and recipe, ten steps of one micro-batch, in float32 without dropout.

trl lives in an environment of its own, which LUTHIER_TRL_PYTHON names; `pip install trl==1.16.0` beside torch and transformers
makes one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from luthier.data.dataset.mismatched import Mismatched
from luthier.data.steps.order import Steps
from luthier.objectives.sft import SFT
from luthier.training.before_step import survey
from luthier.training.step import optimizer_step, plan_step
from luthier.types import NO_TARGET, Sample
from tests.helpers.jobs import Listed, make_config, make_job, make_policy
from tests.helpers.pairs import made, make_pairs
from tests.helpers.tiny_models import save_twin, scored_twin
from tests.objectives.test_kto import JUDGED, make_answers

PYTHON = os.environ.get("LUTHIER_TRL_PYTHON", "")
SIDE = Path(__file__).parents[2] / "benchmarks" / "trl_side.py"
STEPS, SEED = 10, 0
NEAR, NOTHING = 1e-5, 1e-7
"""Relative difference of a step's loss, and the difference that is rounding of the margin where the loss has nearly gone (hinge)."""

RECIPE = ("tuning=full", "learning_rate=1e-3", "lr_scheduler_type=constant", "warmup_steps=0", "weight_decay=0", "max_grad_norm=null",
          "global_batch_size=8", f"max_steps={STEPS}")  # fmt: skip
LENGTHS = ((3, 3, 9), (60, 40, 70), (17, 3, 8), (9, 90, 33), (33, 7, 7), (8, 150, 50), (60, 12, 70), (5, 30, 200))
ONE_TOKEN = tuple((1, *answers) for _, *answers in LENGTHS)

CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "sft": ({"kind": "sft"}, "sft", {}),
    "sigmoid": ({"kind": "dpo"}, "dpo", {}),
    "hinge": ({"kind": "dpo", "loss": "hinge"}, "dpo", {"loss_type": "hinge"}),
    "ipo": ({"kind": "dpo", "loss": "ipo"}, "dpo", {"loss_type": "ipo"}),
    "robust": (
        {"kind": "dpo", "loss": "robust", "label_smoothing": 0.1},
        "dpo",
        {"loss_type": "robust", "label_smoothing": 0.1},
    ),
    "apo_zero": ({"kind": "dpo", "loss": "apo_zero"}, "dpo", {"loss_type": "apo_zero"}),
    "apo_down": ({"kind": "dpo", "loss": "apo_down"}, "dpo", {"loss_type": "apo_down"}),
    "sigmoid_norm": ({"kind": "dpo", "loss": "sigmoid_norm"}, "dpo", {"loss_type": "sigmoid_norm"}),
    "ld_alpha": ({"kind": "dpo", "ld_alpha": 0.5}, "dpo", {"ld_alpha": 0.5}),
    "cpo": ({"kind": "cpo"}, "cpo", {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0}),
    "simpo": (
        {"kind": "simpo", "beta": 2.0, "gamma_beta_ratio": 0.25},
        "cpo",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
    ),
    "orpo": ({"kind": "orpo"}, "orpo", {"beta": 0.1}),
    "reward": (
        {"kind": "reward", "center_rewards_coefficient": 0.3},
        "reward",
        {"center_rewards_coefficient": 0.3},
    ),
    "kto": (
        {"kind": "kto", "desirable_weight": 1.5, "undesirable_weight": 0.7},
        "kto",
        {"desirable_weight": 1.5, "undesirable_weight": 0.7},
    ),
    "apo_zero_unpaired": ({"kind": "kto", "loss": "apo_zero_unpaired"}, "kto", {"loss_type": "apo_zero_unpaired"}),
}
"""name -> our objective, trl's trainer and the settings of its configuration."""

pytestmark = [
    pytest.mark.prove,
    pytest.mark.skipif(not PYTHON, reason="LUTHIER_TRL_PYTHON names no Python that has trl"),
]


def samples_of(name: str) -> list[Sample]:
    """Eight pairs; of `sft` the better answers alone, of KTO eight answers.

    trl 1.16 trains the request as well (trl.experimental.orpo.orpo_trainer, lines 794 to 803: labels are all input ids), which the
    paper does not: the requests of ORPO have one token here, the first, which nothing predicts.
    """
    if CASES[name][1] == "kto":
        return make_answers((*JUDGED, (9, 30, 0)))
    pairs = make_pairs(ONE_TOKEN if name == "orpo" else LENGTHS)
    return pairs[::2] if name == "sft" else pairs


def parts(sample: Sample) -> tuple[list[int], list[int]]:
    """The ids of the request, and those of the answer."""
    first = int((sample.targets != NO_TARGET).argmax()) + 1
    return sample.input_ids[:first].tolist(), sample.input_ids[first:].tolist()


def rows_of(samples: list[Sample], kind: str) -> list[dict[str, Any]]:
    """The ids, as the other side takes them."""
    found: list[dict[str, Any]] = []
    if kind == "kto":
        others = Mismatched(Listed(samples), SEED, None)
        for place, sample in enumerate(samples):
            prompt, answer = parts(sample)
            found.append(
                {"prompt": prompt, "answer": answer, "other": parts(others[place])[1], "good": sample.role == 0}
            )
        return found
    for example in range(len({sample.example for sample in samples})):
        prompts, answers = zip(*(parts(one) for one in samples if one.example == example), strict=True)
        found.append({"prompt": prompts[0], "chosen": answers[0], "rejected": answers[-1]})
    return found


def ours(name: str, folder: Path) -> list[float]:
    """The loss of each step."""
    config = make_config(folder, *RECIPE)
    policy = make_policy(config, warm=False, scored=name == "reward")
    job = make_job(config, samples_of(name), policy, max_tokens=100_000)
    spec = CASES[name][0]
    job.objective = SFT(SFT.Config()) if spec["kind"] == "sft" else made(**spec)
    job.steps = Steps(job.samples.examples, 8, config.seed, None, STEPS)
    if job.objective.mismatched:
        job.mismatched = {"train": Mismatched(job.samples, SEED, None)}
    policy.starts_at_base = False
    policy.keep_reference()
    losses = list[float]()
    for number in range(STEPS):
        step = plan_step(job, number)
        survey(job, step)
        losses.append(optimizer_step(job, step).figures["loss"])
    return losses


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[float]]:
    """name -> the loss of each step."""
    folder = tmp_path_factory.mktemp("trl")
    save_twin(folder / "model", "llama")
    scored = scored_twin("llama")
    scored.config.pad_token_id = 0  # no id of the rows
    scored.save_pretrained(folder / "scored")
    shared = {"cuts": [[8, 1]], "steps": STEPS}
    runs = [
        {"name": name, "rows": rows_of(samples_of(name), trainer), "trainer": trainer, "settings": settings, **shared}
        for name, (_, trainer, settings) in CASES.items()
    ]
    (folder / "given.json").write_text(json.dumps({"model": str(folder / "model"), "runs": runs}))
    done = subprocess.run(
        [PYTHON, SIDE, folder / "given.json", folder / "found.json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((folder / "found.json").read_text())
    return {name: made["losses"][0] for name, made in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_losses_of_ten_steps(name: str, theirs: Mapping[str, list[float]], tmp_path: Path) -> None:
    assert ours(name, tmp_path) == pytest.approx(theirs[name], rel=NEAR, abs=NOTHING)
    assert theirs[name][-1] != pytest.approx(theirs[name][0], rel=1e-3)

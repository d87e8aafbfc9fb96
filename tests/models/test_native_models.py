"""The native architectures against a second formula written here, in loops over tokens and heads and without a cache;
and in every use that luthier makes of a model."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, DynamicCache

from luthier.models.architectures.baichuan.model import NormHead, alibi_slopes
from luthier.models.flat import use_flat_attention
from luthier.models.load import load_model
from tests.helpers.properties import examples
from tests.helpers.tiny_models import TWINS, save_twin, twin

NAMES = ("yuan", "baichuan", "baichuan_alibi")
SHARED_QK = {"use_shareqk": True}
END, SEP = 2, 3
Weights = dict[str, torch.Tensor]


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * x / torch.sqrt((x * x).mean() + eps)


def turned(x: torch.Tensor, position: int) -> torch.Tensor:
    """One head's vector at a position."""
    half = len(x) // 2
    out = list(x)
    for i in range(half):
        angle = position * 10000 ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return torch.stack(out)


def filtered(w: Weights, layer: str, normed: list[torch.Tensor], t: int) -> torch.Tensor:
    """What the filter makes of token t of one document."""
    a, b = w[f"{layer}.lf_gate.conv1.weight"][..., 0], w[f"{layer}.lf_gate.conv2.weight"][..., 0]

    def first(s: int) -> torch.Tensor:
        out = a[..., 1] @ normed[s] + w[f"{layer}.lf_gate.conv1.bias"]
        return out + a[..., 0] @ normed[s - 1] if s > 0 else out

    out = b[..., 1] @ first(t) + w[f"{layer}.lf_gate.conv2.bias"]
    out = out + b[..., 0] @ first(t - 1) if t > 0 else out
    return norm(out + normed[t], w[f"{layer}.lf_gate.output_layernorm.weight"], 1e-6)


def vectors(config: Any, w: Weights, layer: str, normed: list[torch.Tensor], t: int) -> tuple[list[Any], ...]:
    """Queries, keys and values of token t, a list of heads each, before positions."""
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    h = normed[t]
    if config.model_type == "baichuan":
        query, key, value = (w[f"{layer}.W_pack.weight"] @ h).split(config.hidden_size)
    elif config.use_shareqk:
        both = w[f"{layer}.qk_proj.weight"] @ h
        query, key = (both * w[f"{layer}.qk_weight"][n] + w[f"{layer}.qk_bias"][n] for n in (0, 1))
        value = w[f"{layer}.v_proj.weight"] @ h
    else:
        f = filtered(w, layer, normed, t)
        blocks = [*(w[f"{layer}.q_proj.weight"] @ f).split(size), *(w[f"{layer}.k_proj.weight"] @ f).split(size)]
        value = w[f"{layer}.v_proj.weight"] @ h
        return blocks[0::2], blocks[1::2], list(value.split(size))
    assert heads * size == len(query)
    return list(query.split(size)), list(key.split(size)), list(value.split(size))


def plain(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits [T, V] of one document, by loops."""
    config, w = model.config, dict(model.named_parameters())
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    resets = config.model_type == "yuan" and config.reset_attention_mask and not config.use_flash_attention
    resets = resets and (config.reset_position_ids or model.training)
    begin = [max((s + 1 for s in range(t) if ids[s] == END), default=0) if resets else 0 for t in range(len(ids))]
    alibi = alibi_slopes(heads) if config.model_type == "baichuan" and config.max_position_embeddings is None else None
    x = [w["model.embed_tokens.weight"][index] for index in ids]
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}"
        normed = [norm(h, w[f"{layer}.input_layernorm.weight"], config.rms_norm_eps) for h in x]
        made = [vectors(config, w, f"{layer}.self_attn", normed, t) for t in range(len(ids))]
        for t in range(len(ids)):
            out = []
            for n in range(heads):
                scores = []
                for s in range(begin[t], t + 1):
                    query, key = made[t][0][n], made[s][1][n]
                    if alibi is None:
                        scores.append(turned(query, t) @ turned(key, s) / math.sqrt(size))
                    else:
                        scores.append(query @ key / math.sqrt(size) + alibi[n] * (s - t))
                weights = torch.stack(scores).softmax(0)
                out.append(sum(weights[i] * made[begin[t] + i][2][n] for i in range(len(weights))))
            x[t] = x[t] + w[f"{layer}.self_attn.o_proj.weight"] @ torch.cat(out)
        for t, h in enumerate(x):
            inner = norm(h, w[f"{layer}.post_attention_layernorm.weight"], config.rms_norm_eps)
            gate, up = w[f"{layer}.mlp.gate_proj.weight"] @ inner, w[f"{layer}.mlp.up_proj.weight"] @ inner
            silu, other = (up, gate) if config.model_type == "yuan" else (gate, up)
            x[t] = h + w[f"{layer}.mlp.down_proj.weight"] @ (other * silu * torch.sigmoid(silu))
    head = w["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    if getattr(config, "norm_head", False):
        head = head / head.norm(dim=1, keepdim=True)
    return torch.stack([head @ norm(h, w["model.norm.weight"], config.rms_norm_eps) for h in x])


def made(name: str, seed: int = 0, **changes: Any) -> Any:
    """A twin whose weights are large enough that a mistake shows, in float64; norms and biases are not trivial."""
    model = twin(name, seed, **changes).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(1 + 0.3 * drawn if parameter.dim() == 1 else 0.2 * drawn)
    return model


SMALL = {"vocab_size": 12, "intermediate_size": 10, "pad_token_id": 0}
SWITCHES = st.fixed_dictionaries(
    {
        "use_flash_attention": st.booleans(),
        "reset_attention_mask": st.booleans(),
        "reset_position_ids": st.booleans(),
        "use_shareqk": st.booleans(),
        "tie_word_embeddings": st.booleans(),
    }
)


@pytest.mark.prove
@examples(25)
@given(
    heads_and_size=st.sampled_from([(1, 4), (2, 8), (3, 12), (6, 12), (4, 16)]),
    layers=st.integers(1, 2),
    ids=st.lists(st.integers(1, 11), min_size=1, max_size=9),
    switches=SWITCHES,
    training=st.booleans(),
    seed=st.integers(0, 99),
)
def test_yuan_is_the_formula(
    heads_and_size: tuple[int, int], layers: int, ids: list[int], switches: Any, training: bool, seed: int
) -> None:
    heads, size = heads_and_size
    keys = {**SMALL, **switches, "num_attention_heads": heads, "hidden_size": size, "num_hidden_layers": layers}
    model = made("yuan", seed, **keys).train(training)
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([ids])).logits[0], plain(model, ids), rtol=0, atol=1e-5)


@examples(15)
@given(
    name=st.sampled_from(["baichuan", "baichuan_alibi"]),
    heads_and_size=st.sampled_from([(1, 4), (2, 8), (3, 12), (6, 12)]),
    ids=st.lists(st.integers(1, 11), min_size=1, max_size=9),
    norm_head=st.booleans(),
    seed=st.integers(0, 99),
)
def test_baichuan_is_the_formula(
    name: str, heads_and_size: tuple[int, int], ids: list[int], norm_head: bool, seed: int
) -> None:
    heads, size = heads_and_size
    model = made(name, seed, **SMALL, num_attention_heads=heads, hidden_size=size, norm_head=norm_head)
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([ids])).logits[0], plain(model, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"), [("yuan", {}), ("yuan", SHARED_QK), ("baichuan", {}), ("baichuan_alibi", {})]
)
def test_gradients_are_those_of_the_formula(name: str, changes: dict[str, Any]) -> None:
    """Through the filter, the dealt-out projections, positions, the tied or normed head."""
    ids = [5, 7, END, 4, 9, 5]
    model = made(name, **SMALL, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, **changes)
    direction = torch.randn(6, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for logits in (model(torch.tensor([ids])).logits[0], plain(model, ids)):
        model.zero_grad()
        (logits * direction).sum().backward()
        found.append({key: parameter.grad.clone() for key, parameter in model.named_parameters()})
    for key, gradient in found[0].items():
        assert float((gradient - found[1][key]).norm()) <= 1e-4 * float(found[1][key].norm()) + 1e-9, key


documents = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=5)


@examples(20)
@given(name=st.sampled_from(NAMES), rows=documents, training=st.booleans(), attention=st.sampled_from(["flat", "sdpa"]))
def test_flat_is_each_document_alone(name: str, rows: list[list[int]], training: bool, attention: str) -> None:
    """By luthier's attention, and by transformers' own, with <eod> inside documents and a mask behind it."""
    model = FLAT[name, attention].train(training)
    lengths = [len(row) for row in rows]
    edges = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    keywords = {
        "cu_seq_lens_q": edges,
        "cu_seq_lens_k": edges,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    if attention == "sdpa" and all(length > 1 for length in lengths):
        keywords = {}  # restarting positions say enough
    with torch.no_grad():
        flat = model(
            torch.tensor([[index for row in rows for index in row]]),
            position_ids=positions,
            use_cache=False,
            **keywords,
        ).logits[0]
        for part, row in zip(flat.split(lengths), rows, strict=True):
            alone = ALONE[name].train(training)(torch.tensor([row])).logits[0]
            torch.testing.assert_close(part, alone, rtol=0, atol=1e-4)


def _flat(name: str, attention: str) -> Any:
    model = made(name).float()
    if attention == "flat":
        use_flat_attention(model)
        assert model.model.layers[0].self_attn.config._attn_implementation == "luthier_flat"
    return model


FLAT = {(name, attention): _flat(name, attention) for name in NAMES for attention in ("flat", "sdpa")}
ALONE = {name: made(name).float() for name in NAMES}


@examples(20)
@given(
    name=st.sampled_from(NAMES),
    ids=st.lists(st.integers(1, 30), min_size=2, max_size=14),
    pads=st.integers(0, 4),
    data=st.data(),
)
def test_in_pieces_through_the_cache_with_padding_before(name: str, ids: list[int], pads: int, data: Any) -> None:
    """Also where a piece ends inside the padding, and with an <eod> in a piece before."""
    model = ALONE[name].eval()
    whole = torch.tensor([[0] * pads + ids])
    mask = (torch.arange(pads + len(ids)) >= pads).long()[None]
    cuts = sorted(data.draw(st.sets(st.integers(1, pads + len(ids) - 1), max_size=5)))
    cache, found = DynamicCache(), []
    with torch.no_grad():
        for start, end in zip([0, *cuts], [*cuts, pads + len(ids)], strict=True):
            seen = mask[:, :end]
            out = model(whole[:, start:end], attention_mask=seen, past_key_values=cache, use_cache=True)
            found.append(out.logits[0])
        alone = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(torch.cat(found)[pads:], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_beams_samples_and_copies_keep_their_own_cache(name: str) -> None:
    model = ALONE[name].eval()
    ids = torch.tensor([[5, 9, 4, 8], [0, 0, 7, 6]])
    keywords = {"attention_mask": (ids != 0).long(), "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    for beams in ({"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        cached = model.generate(ids, use_cache=True, **keywords, **beams)
        assert torch.equal(cached, model.generate(ids, use_cache=False, **keywords, **beams))


def test_a_cache_without_place_for_the_filter_is_refused() -> None:
    filled = DynamicCache()
    ALONE["baichuan"](torch.tensor([[5, 6]]), past_key_values=filled, use_cache=True)
    with pytest.raises(ValueError, match="no place"):
        ALONE["yuan"](torch.tensor([[5]]), past_key_values=filled, use_cache=True)


@pytest.mark.parametrize("name", NAMES)
def test_chosen_positions_of_the_logits(name: str) -> None:
    model = ALONE[name].eval()
    ids = torch.randint(1, 30, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.rand(2, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    with torch.no_grad():
        whole = model(ids).logits
        assert torch.equal(model(ids, logits_to_keep=mask).logits, whole[mask])
        assert torch.allclose(model(ids, logits_to_keep=2).logits, whole[:, -2:], atol=1e-6)
        assert torch.allclose(model(ids, logits_to_keep=torch.tensor([1, 4])).logits, whole[:, [1, 4]], atol=1e-6)
        each = torch.tensor([[0, 2], [6, 1]])
        assert torch.allclose(model(ids, logits_to_keep=each).logits[1, 0], whole[1, 6], atol=1e-6)


def test_the_loss_leaves_out_requests_where_asked() -> None:
    ids = torch.tensor([[8, 9, SEP, 7, 6, END, 5, SEP, 4, END]])
    model = twin("yuan", use_loss_mask=True)
    counted = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 1, 1, 1]]).bool()
    loss = model(ids, labels=ids).loss
    model.config.use_loss_mask = False
    assert float(loss) == pytest.approx(float(model(ids, labels=ids.masked_fill(~counted, -100)).loss), abs=1e-6)
    assert float(loss) != pytest.approx(float(model(ids, labels=ids).loss), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointed_layers_give_the_same_gradients(name: str) -> None:
    ids = torch.randint(1, 30, (2, 9), generator=torch.Generator().manual_seed(0))
    found = []
    for checkpointed in (False, True):
        model = made(name).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(ids, labels=ids).loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_resized_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = twin(name)
    before = model(torch.tensor([[5, 6, 7]])).logits
    model.resize_token_embeddings(520)
    assert isinstance(model.lm_head, NormHead) is (name != "yuan")
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is (name == "yuan")
    after = model(torch.tensor([[5, 6, 519]])).logits
    assert after.shape[-1] == 520
    assert torch.allclose(after[:, :2, :512], before[:, :2], atol=1e-6)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(torch.tensor([[5, 6, 519]])).logits, after)


def test_the_head_of_the_first_version_is_plain_and_stays_so(tmp_path: Path) -> None:
    config = AutoConfig.for_model(**{**TWINS["baichuan"], "vocab_size": 64000})
    assert config.norm_head is False
    config = type(config)(**{**config.to_dict(), "vocab_size": 64001})
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).norm_head is False
    assert twin("baichuan").config.norm_head is True


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["all-linear", "own"])
def test_lora_goes_on_and_moves_the_model(name: str, target: str) -> None:
    own = ["q_proj", "k_proj", "conv1", "conv2"] if name == "yuan" else ["W_pack"]
    model = twin(name)
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(ids).logits.detach()
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=target if target == "all-linear" else own))
    assert torch.equal(peft(ids).logits, before)
    peft(ids, labels=ids).loss.backward()
    gradients = {key: parameter.grad for key, parameter in peft.named_parameters() if "lora_B" in key}
    assert len(gradients) == 2 * (
        {"yuan": 7, "baichuan": 5}[name.split("_")[0]] if target == "all-linear" else len(own)
    )
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients.values())
    for key, parameter in peft.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned = peft(ids).logits.detach()
    assert torch.allclose(peft.merge_and_unload()(ids).logits, tuned, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_held_in_fewer_bits(name: str, kind: str, tmp_path: Path) -> None:
    """The projections are; head, norms and the filter are not. Close to the whole model, and generating."""

    class Held:
        def loading_config(self, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
            if kind == "int8":
                return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
            return BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype
            )

    folder = save_twin(tmp_path, name, initializer_range=0.1)
    whole = load_model(folder, dtype=torch.float32, device="cpu")
    model = load_model(folder, dtype=torch.float32, device="cpu", quantization=Held())
    held = {type(module).__name__ for key, module in model.named_modules() if key.endswith(("_proj", "_pack"))}
    assert held == {"Linear8bitLt" if kind == "int8" else "Linear4bit"}
    assert type(model.lm_head) is type(whole.lm_head)
    ids = torch.randint(4, 500, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = (model(ids).logits - whole(ids).logits).norm() / whole(ids).logits.norm()
    assert 0 < float(error) < (0.05 if kind == "int8" else 0.35)
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] <= 12


@pytest.mark.parametrize("name", NAMES)
def test_in_bfloat16(name: str) -> None:
    model = twin(name, initializer_range=0.1)
    ids = torch.randint(4, 500, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact, rounded = model(ids).logits, model.to(torch.bfloat16)(ids).logits
    assert rounded.dtype == torch.bfloat16
    assert float((rounded.float() - exact).norm() / exact.norm()) < 0.03


@pytest.mark.parametrize(("key", "value"), [("causal_mask", False), ("hidden_act", "gelu"), ("num_attention_heads", 5)])
def test_what_is_not_defined_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{key}|heads"):
        AutoConfig.for_model("yuan", **{key: value})


@pytest.mark.prove
@pytest.mark.parametrize(
    "code",
    [
        "import luthier, sys; assert not {'torch', 'transformers'} & set(sys.modules)",
        "import luthier; from transformers import AutoConfig, AutoModelForCausalLM as M; c = AutoConfig.for_model('yuan', "
        "vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, pad_token_id=0); "
        "assert type(M.from_config(c)).__name__ == 'YuanForCausalLM'",
        "from transformers import AutoConfig, AutoTokenizer; import luthier; AutoConfig.for_model('baichuan'); import sys; "
        "assert 'luthier.models.architectures.baichuan.model' not in sys.modules",
        "import luthier, importlib.util; importlib.util.find_spec('transformers.models.auto.configuration_auto'); "
        "from transformers import AutoConfig; AutoConfig.for_model('yuan')",
    ],
)
def test_known_by_importing_luthier_whichever_comes_first(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_shapes_give_the_published_counts() -> None:
    """2B: 2,088,724,480 with the tied head; 7B: 7,505,973,248."""
    counts = {"yuan": 2_088_724_480, "baichuan": 7_505_973_248}
    seven = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    changes: dict[str, Any] = {"yuan": {}, "baichuan": {**seven, "max_position_embeddings": 4096}}
    for name, count in counts.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **changes[name]))
        assert model.num_parameters() == count


def test_normed_head_by_hand() -> None:
    head = NormHead(3, 2, bias=False)
    weight = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    head.weight.data = weight
    assert torch.allclose(head(torch.ones(1, 3)), torch.tensor([[1.4, 0.0]]))
    assert torch.equal(head.weight, weight), "the weight stays as it is"
    assert torch.allclose(F.linear(torch.ones(1, 3), weight / 5)[0, 0], head(torch.ones(1, 3))[0, 0])

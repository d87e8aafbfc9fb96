"""The values that the demo's requests are made of: names of models and files, and numbers. Data, no behaviour.

`SEEN` values occur in training, `UNSEEN` ones only in the test on new values: for every open field the two share no value. (Closed
choices, such as the kinds of a schedule or the ending of a file's name, have no unseen values.)
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Values:
    """Pools to draw from. A name of a model is composed of a family, a size and perhaps an ending; of a file, of words."""

    orgs: tuple[str, ...]
    families: tuple[str, ...]
    sizes: tuple[str, ...]
    endings: tuple[str, ...]
    models: tuple[str, ...]
    words: tuple[str, ...]
    tags: tuple[str, ...]
    folders: tuple[str, ...]
    epochs: tuple[str, ...]
    learning_rate: tuple[str, ...]


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SEEN = Values(
    orgs=_split(
        "Qwen meta-llama mistralai google microsoft tiiuae allenai stabilityai bigscience EleutherAI acme my-lab"
    ),
    families=_split(
        "qwen3 qwen2.5 Qwen2.5 llama-3.1 Llama-3.2 mistral Mistral gemma-2 gemma-3 phi-3 Phi-4 falcon olmo-2 OLMo "
        "stablelm bloomz pythia smollm smollm2 opt redpajama dolly vicuna zephyr "
        "aya-23 jais persimmon fuyu mamba rwkv-6 xgen mpt santacoder cerebras-gpt galactica aquila2 Skywork BlueLM "
        "telechat hunyuan ernie-4.5 seed-oss apertus olmoe openelm danube3 tulu-3 nous-hermes wizardlm koala alpaca-lora "
        "guanaco platypus2 airoboros dolphin-2 stripedhyena hymba zamba2 teuken salamandra eurollm viking croissant"
    ),
    sizes=_split("0.5b 0.6B 1b 1.5B 1.7b 2b 3B 4b 7b 8B 12b 14B 32b 70B 135m 360M 410m"),
    endings=_split("instruct Instruct it chat base v0.2 hf"),
    models=_split(
        "gpt2 gpt2-medium distilgpt2 TinyLlama-1.1B HuggingFaceTB/SmolLM2-135M-Instruct Qwen/Qwen3-0.6B qwen3-4b "
        "meta-llama/Llama-3.1-8B mistralai/Mistral-7B-v0.3 google/gemma-2-2b-it phi-3-mini models/base-7b ./my-model "
        "EleutherAI/pythia-160m checkpoints/llama phi-2 openhermes-7b"
    ),
    words=_split(
        "tickets reviews support emails faq orders notes chats questions recipes contracts poems reports medical legal code "
        "sql products news summaries dialogs forum customer answers train alpaca stories tweets invoices complaints "
        "jokes lyrics exams history physics travel hotel sales legal_qa bugs commits manuals "
        "abstracts adverts articles auctions bills blog books briefs captions cards cases cinema clinic coupons courses "
        "debates deeds diary dishes drafts events fables filings films flights forms gardens glossary grades guides hymns "
        "incidents issues journal labels leases lectures ledger library maps market meetings memos messages museum music "
        "novels offers opera outlines paints papers parcels permits phrases plants plays policies posts prayers prices "
        "profiles quotes rentals repairs replies returns routes rules schools scripts shipping signs speeches sports "
        "stock surveys tales tasks taxes tenders terms tests theses tips titles tools tours trades trials verdicts wiki wines"
    ),
    tags=_split("v2 2023 clean en full small new final de march 01 raw"),
    folders=_split("data data/raw corpus sets ./data"),
    epochs=_split("1 2 3 4 5 8 10 1.5 one two three four five ten"),
    learning_rate=_split(
        "1e-4 2e-4 3e-4 5e-4 1e-3 2e-3 1e-5 2e-5 3e-5 5e-5 5e-6 8e-5 1.5e-4 2.5e-4 0.0001 0.0002 0.0005 0.001 "
        "0.00002 0.00005 0.0003 0.002"
    ),
)

UNSEEN = Values(
    orgs=_split("deepseek-ai ibm-granite 01-ai internlm CohereForAI nvidia HuggingFaceH4 baichuan-inc"),
    families=_split(
        "deepseek granite-3.1 Yi-1.5 internlm2.5 command-r nemotron baichuan2 MiniCPM exaone-3.5 glm-4 starcoder2 "
        "codellama solar yuan2 orca-2"
    ),
    sizes=_split("0.3b 1.3B 2.4b 2.7B 6b 9B 10.7b 13B 15b 20B 34b 40B 125m 350M"),
    endings=_split("sft preview v1.1 Chat-v2 aligned"),
    models=_split(
        "deepseek-ai/deepseek-llm-7b-chat ibm-granite/granite-3.1-2b-instruct 01-ai/Yi-6B gpt-neo-125m t5gemma "
        "nvidia/Minitron-4B-Base weights/mini-llm ./checkpoint-500 bloke/wizard-13b gpt-oss-20b"
    ),
    words=_split(
        "claims feedback letters interviews symptoms patents essays tutorials headlines transcripts agreements menus "
        "riddles proverbs biology weather banking insurance requests logs phone_calls homework minutes errata"
    ),
    tags=_split("v3 2025 dedup fr large old april 07 fixed part2"),
    folders=_split("datasets files/in input ./corpora"),
    epochs=_split("6 7 9 15 20 2.5 six seven nine twelve"),
    learning_rate=_split("4e-4 6e-4 7e-5 4e-5 6e-5 8e-4 3e-3 9e-5 1.2e-4 4e-6 7e-4 0.0004 0.0006 0.003 0.00007"),
)

ENDINGS_OF_FILES = ("jsonl", "jsonl", "json", "csv", "parquet")

NUMBER_WORDS = {
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "nine": 9,
    "ten": 10,
    "twelve": 12,
}

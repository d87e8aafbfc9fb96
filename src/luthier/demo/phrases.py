"""How people say it: sentences around a model and its data, and the clauses of each wish, all written by hand.

A request has one of three manners: `prose` (one sentence with a list of wishes), `steps` (an opening and a sentence for each wish) or
`notes` (telegraphic). `SEEN` phrasings make the training rows; `UNSEEN` ones, written apart, only the test on new phrasings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phrasing:
    """Frames take {model}, {data} and {list}; clauses take {v}. `clauses[field][manner]` or, for a choice, `clauses["field=choice"]`."""

    prose: tuple[str, ...]
    steps: tuple[str, ...]
    notes: tuple[str, ...]
    before: tuple[str, ...]
    """what may stand before a request in prose or steps"""
    after: tuple[str, ...]
    clauses: Mapping[str, Mapping[str, tuple[str, ...]]]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _clause(prose: str, steps: str, notes: str) -> Mapping[str, tuple[str, ...]]:
    """Alternatives are set apart by a bar."""
    parts = {"prose": prose, "steps": steps, "notes": notes}
    return {manner: tuple(part.strip() for part in text.split("|")) for manner, text in parts.items()}


SEEN = Phrasing(
    prose=_lines("""
        Fine-tune {model} on {data} with {list}.
        Finetune {model} on {data} using {list}.
        Tune {model} on {data} with {list}.
        Please fine-tune {model} with the data in {data}, {list}.
        Train {model} on {data}: {list}.
        Can you train {model} on {data} with {list}?
        Could you fine-tune {model} for me on {data}, using {list}?
        I want to tune {model} on {data} with {list}.
        I'd like to fine-tune {model} on my file {data}, with {list}.
        We need {model} trained on {data}, {list}.
        Using {list}, fine-tune {model} on {data}.
        With {list}, train {model} on {data}.
        Take {model} and train it on {data} with {list}.
        Adapt {model} to {data} with {list}.
        Give me a config for {model} on {data} with {list}.
        Write a config that tunes {model} on {data}, {list}.
        How do I fine-tune {model} on {data} with {list}?
        Make {model} learn {data} with {list}.
        Set up a run of {model} on {data} with {list}.
        My data is {data}; please tune {model} on it with {list}.
        Use {data} to fine-tune {model} with {list}.
        Let's train {model} on {data}, {list}.
        Start from {model}, train on {data}, {list}.
        Run a fine-tune of {model} over {data} with {list}.
        Teach {model} what is in {data}, with {list}.
        From {data}, train {model} with {list}.
        A training run please: {model}, {data}, {list}.
        Need a fine-tune of {model} on {data} ({list}).
    """),
    steps=_lines("""
        Fine-tune {model} on {data}.
        Train {model} on {data}.
        I have a file {data} and I want to tune {model} on it.
        We collected {data} last month and would like {model} to learn from it.
        Please train {model} with the rows of {data}.
        Could you set up training of {model} on {data}?
        The model is {model} and the data is {data}.
        My data set is {data}. The base model is {model}.
        I am trying to teach {model} our style; the examples are in {data}.
        Use {model}. The training file is {data}.
        Start with {model} and learn from {data}.
        I'd like to tune {model}. The examples are in {data}.
        Help me fine-tune {model} with {data}.
        Our team wants {model} tuned. Data: {data}.
        Write me a YAML for {model} trained on {data}.
        Let's do a run with {model} on {data}.
        Here is {data}. Tune {model} on it.
        Tune {model}, please. Take the data from {data}.
    """),
    notes=_lines("""
        {model}, {data}, {list}
        {model} on {data}, {list}
        {model} + {data}, {list}
        tune {model} on {data}, {list}
        {data} -> {model}, {list}
        model {model}, data {data}, {list}
        model: {model}, data: {data}, {list}
        train {model}, {data}, {list}
        finetune {model} {data} {list}
        {list}, {model}, {data}
        base {model}, file {data}, {list}
        run: {model} / {data}, {list}
        todo: {model} on {data}, {list}
        {data}, {model}, {list}
        ft {model} w/ {data}, {list}
    """),
    before=_lines("""
        Hi!
        Hello,
        Hey,
        Good morning.
        Quick one:
        Hi there.
        OK,
    """),
    after=_lines("""
        Thanks!
        Thank you.
        Thanks a lot.
        That's all.
        Nothing else.
        Cheers.
        The rest can stay as it is.
    """),
    clauses={
        "method=lora": _clause(
            "LoRA|a LoRA adapter|LoRA adapters|plain LoRA|lora|low-rank adapters",
            "Use LoRA|Train a LoRA adapter|Do it with LoRA|Make it a LoRA run|LoRA is fine",
            "lora|LoRA|adapter|method lora|lora adapter",
        ),
        "method=qlora": _clause(
            "QLoRA|qlora|4-bit QLoRA|LoRA on a 4-bit base|4 bit quantization|the base in 4 bits|nf4 quantization|the model loaded in 4-bit",
            "Use QLoRA|Load the base in 4 bits|Make it QLoRA|Quantize the model to 4 bit|Hold the weights in nf4|Memory is tight, so use 4 bits",
            "qlora|QLoRA|4bit|4-bit|nf4|lora 4bit|q-lora",
        ),
        "method=full": _clause(
            "full fine-tuning|all weights trained|full tuning|a full finetune|every parameter trained|no LoRA but all weights",
            "Train all weights|Do a full fine-tune|Full fine-tuning, no adapters|Tune every parameter|No LoRA, train everything|Update the whole model",
            "full|full ft|full fine-tune|all weights|full tuning|no lora",
        ),
        "epochs": _clause(
            "{v} epochs|for {v} epochs|{v} passes over the data|{v} epochs of training|epochs = {v}|{v} rounds through the data",
            "Train for {v} epochs|Do {v} epochs|Go over the data {v} times|{v} epochs are enough|Run it for {v} epochs|Make {v} passes",
            "{v} epochs|{v} ep|epochs {v}|ep={v}|{v} ep.|epochs={v}|{v} passes",
        ),
        "learning_rate": _clause(
            "lr {v}|a learning rate of {v}|learning rate {v}|an lr of {v}|lr={v}|learning rate = {v}|{v} as the learning rate|lr at {v}",
            "Set the learning rate to {v}|Use a learning rate of {v}|The learning rate should be {v}|Learning rate {v}|lr is {v}|"
            "Start at a learning rate of {v}|Use lr {v}",
            "lr {v}|lr={v}|lr: {v}|learning rate {v}|LR {v}|lr = {v}",
        ),
    },
)

UNSEEN = Phrasing(
    prose=_lines("""
        Would it be possible to have {model} customised with {data}? I am thinking of {list}.
        What would the file look like if {model} should study {data} under {list}?
        For {data} I would pick {model}; go for {list}.
        Prepare an experiment in which {model} sees {data}, choosing {list}.
        {list}: those are the settings for specialising {model} with the help of {data}.
        It would be great to have {model} refined by means of {data}, given {list}.
        I was told to get {model} going with {data} and to take {list}.
        Kindly produce the settings to continue training {model} from {data}: {list}.
        Let {model} practise on everything inside {data}; we agreed on {list}.
        Next experiment has {list}, it is {model} as base and {data} as material.
        Show me the YAML where {data} feeds {model} and there is {list}.
        My boss asks for {model} specialised on {data} having {list}.
    """),
    steps=_lines("""
        Yesterday I exported {data} from our system, and now {model} ought to imitate it.
        There is this spreadsheet {data} that {model} should get to know.
        For my thesis I am going to specialise {model}; everything it needs is in {data}.
        Which settings do I need so that {model} picks up {data}?
        Base checkpoint: {model}. Material to learn: {data}.
        I downloaded {model} this morning and plan to feed it {data}.
        Everything the assistant has to know sits in {data}, and {model} shall be the starting point.
        Let's customise {model}, the examples being stored as {data}.
    """),
    notes=_lines("""
        experiment - {model} - {data} - {list}
        next: feed {data} into {model}; {list}
        {list} | {model} | {data}
        starting point {model} :: material {data} :: {list}
        {model} learns {data}; {list}
        job for tonight = {model} with {data}, {list}
    """),
    before=_lines("""
        Dear luthier,
        Sorry to bother you.
        New task:
        Morning!
    """),
    after=_lines("""
        Much appreciated!
        Defaults for everything else.
        Looking forward to it.
        I leave the rest to you.
    """),
    clauses={
        "method=lora": _clause(
            "an ordinary LoRA|low-rank adaptation (LoRA)|just the LoRA matrices trained",
            "Only LoRA matrices get trained|LoRA would be my choice|I prefer LoRA here",
            "by lora|style=LoRA|LoRA only",
        ),
        "method=qlora": _clause(
            "QLoRA to save memory|the frozen part squeezed into four bits (QLoRA)|weights kept in 4-bit nf4",
            "My GPU is small, hence QLoRA|QLoRA would be my choice|The frozen weights belong in 4 bit",
            "via QLoRA|quant 4bit|nf4 base",
        ),
        "method=full": _clause(
            "full-parameter training|the complete set of weights updated|tuning of all the parameters (full)",
            "I do not want adapters but full training|The complete model gets trained, all weights|Full-parameter training would be my choice",
            "full-parameter|complete weights (full)|everything trained, full",
        ),
        "epochs": _clause(
            "the number of epochs fixed at {v}|a total of {v} epochs|every row seen {v} times",
            "It should see each row {v} times|Altogether that makes {v} epochs|I have {v} epochs in mind",
            "whole epochs: {v}|epoch count {v}|{v} epochs in sum",
        ),
        "learning_rate": _clause(
            "the learning rate fixed at {v}|an initial learning rate being {v}|a peak lr equal to {v}",
            "For the learning rate I have {v} in mind|Its learning rate peaks at {v}|We settled on {v} for the lr",
            "{v} as lr|initial learning rate is {v}|rate of learning {v}",
        ),
    },
)

TYPOS = (
    ("learning rate", "learnign rate"),
    ("epochs", "epcohs"),
    ("please", "plese"),
    ("Fine-tune", "Fine-tne"),
    ("Train", "Trian"),
    ("training", "trainig"),
)
"""Slips of the hand that a few requests carry; never inside a value."""

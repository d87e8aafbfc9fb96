"""Configurations that are meant to hurt, by name: the text of a file, or words of the command line."""

from __future__ import annotations

TRAIN = "model: x\ndata: train.jsonl\n"
HUGE = 10**18


def _deep(levels: int) -> str:
    return "a:" + " {a:" * levels + " 1" + "}" * levels


FILES: dict[str, bytes] = {
    name: text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    for name, text in {
        "90,000 keys": "".join(f"k{i}: {i}\n" for i in range(90_000)),
        "9,000 unknown keys": TRAIN + "".join(f"k{i}: 1\n" for i in range(9_000)),
        "10 MB": TRAIN + "# " + "x" * 10_000_000,
        "10 MB of newlines": "\n" * 10_000_000,
        "a long value": TRAIN + "output_dir: " + "x" * 400_000,
        "a long key": TRAIN + "x" * 900 + ": 1",
        "deep maps": TRAIN + _deep(10_000),
        "deep lists": TRAIN + "seed: " + "[" * 100_000,
        "alias bomb": TRAIN
        + "a0: &a0 [x]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40)),
        "recursion": TRAIN + "training: &t {optim: *t}\n",
        "escape": TRAIN + "output_dir: \x1b[2J\n",
        "NUL": TRAIN + "output_dir: a\0b\n",
        "NUL in a path": TRAIN + 'output_dir: "a\\0b"\n',
        "NUL in a key": TRAIN + '"a\\0b": 1\n',
        "NUL in data": 'model: x\ndata: "a\\0b"\n',
        "NUL in a prompt": TRAIN + 'training: {sample_prompts: ["a\\0b"]}\n',
        "half a character": TRAIN + 'training: {sample_prompts: ["\\ud800"]}\n',
        "half a character in a path": TRAIN + 'output_dir: "\\udfff"\n',
        "half a character in a key": TRAIN + '"\\ud800": 1\n',
        "5,000 characters of path": TRAIN + f"output_dir: {'x' * 5_000}\n",
        "5,000 characters of data": f"model: x\ndata: {'x' * 5_000}\n",
        "5,000 characters of model": f"model: {'x' * 5_000}\ndata: train.jsonl\n",
        "3,000 characters of a file's name": f"model: x\ndata: {'x' * 3_000}\n",
        "no UTF-8": b"model: \xff\xfe\n",
        "UTF-16": TRAIN.encode("utf-16"),
        "byte order mark alone": "\ufeff",
        "tabs": "model: x\n\tdata: y\n",
        "empty": "",
        "list on top": "- model: x\n",
        "text on top": "hello\n",
        "number on top": "9" * 5_000,
        "two documents": TRAIN + "---\n" + TRAIN,
        "omap": TRAIN + "training: !!omap [a: 1]\n",
        "python": TRAIN + "training: !!python/object/apply:os.system [ls]\n",
        "set": TRAIN + "training: !!set {a}\n",
        "binary": TRAIN + "output_dir: !!binary aGVsbG8=\n",
        "twice": TRAIN + "model: y\n",
        "digits": TRAIN + f"seed: {'9' * 10_000}\n",
        "digits of a float": TRAIN + f"training: {{learning_rate: {'9' * 390}}}\n",
        "500 wrong files": "model: x\ndata: [" + "{path: 3}, " * 500 + "]\n",
        "500 weights": "model: x\ndata: [" + "{path: a, weight: 2}, " * 500 + "]\n",
        "keys with escapes": TRAIN + '"\\e[2J\\u202e": 1\n',
        "turned template": TRAIN + 'training: {optim: "\\u202emada"}\n',
    }.items()
}
"""Each is refused with exit code 2."""

WORDS: dict[str, list[str]] = {
    **{
        f"{key}={value}": [f"{key}={value}"]
        for key, value in [
            ("max_steps", HUGE),
            ("max_steps", 10**40),
            ("num_train_epochs", HUGE),
            ("num_train_epochs", "1e308"),
            ("num_train_epochs", ".nan"),
            ("num_train_epochs", ".inf"),
            ("learning_rate", ".inf"),
            ("learning_rate", "1e308"),
            ("warmup_steps", HUGE),
            ("weight_decay", "1e308"),
            ("max_grad_norm", ".nan"),
            ("global_batch_size", 2**64),
            ("logging_steps", 2**64),
            ("eval_steps", HUGE),
            ("save_steps", HUGE),
            ("save_total_limit", 2**64),
            ("early_stopping_patience", 2**64),
            ("max_tokens_per_micro_batch", 2**64),
            ("neftune_noise_alpha", "1e308"),
            ("data.max_samples", 2**64),
            ("data.max_length", 2**64),
            ("data.num_workers", 10**6),
            ("data.max_row_bytes", 2**64),
            ("data.max_unpacked_bytes", 2**64),
            ("data.train", "{path: a, weight: 1e308}"),
            ("data.train", "{path: a, weight: 1e-308}"),
            ("data.train", "{path: a, num_samples: 18446744073709551616}"),
            ("seed", 2**64),
            ("seed", -1),
            ("r", 2**64),
            ("r", 65_536),
            ("lora_alpha", 2**64),
            ("init_lora_weights", "pissa_niter_999"),
            ("init_lora_weights", "pissa_niter_99999999"),
            ("init_lora_weights", "xpissa_niter_4"),
            ("target_modules", "[]"),
            ("target_modules", "''"),
            ("layers_to_transform", "[]"),
            ("rank_pattern", "{q: 65536}"),
            ("loraplus_lr_ratio", "1e308"),
            ("adam_epsilon", "1e308"),
            ("objective", "{kind: weighted, terms: [{kind: sft, weight: 1e308}]}"),
            ("tuning", "builtins:dict"),
            ("objective", "builtins:dict"),
            ("optim", "builtins:object"),
            ("distributed", "os:system"),
            ("distributed", "os.path:join"),
            ("quantization", "luthier.tuning.full:Full"),
            ("objective", "luthier.tuning.lora:Lora"),
            ("tuning", "__main__:X"),
            ("tuning", "..:X"),
            ("tuning", "no.such:X"),
            ("tuning", "a\u202e.b:X"),
            ("tuning", "x" * 5_000),
            ("data.train", "{path: a, format: 'json:JSONDecoder'}"),
        ]
    },
    "a deep value": ["seed=" + "[" * 50_000],
    "a tag": ["output_dir=!!python/name:os.system"],
    "an alias": ["seed=*a"],
    "a long value": ["output_dir=" + "x" * 100_000],
    "a long key": ["x" * 100_000 + "=1"],
    "a deep key": [".".join(["a"] * 20_000) + "=1"],
    "3,000 pairs": [f"k{i}=1" for i in range(3_000)],
    "900 pairs": [f"k{i}=1" for i in range(900)],
    "3,000 pairs of one key": ["seed=1", *["training.bogus=1"] * 3_000],
    "an empty key": ["=1"],
    "dots": ["...=1"],
    "escape": ["output_dir=\x1b[2J"],
    "halves": ["output_dir=\udcff"],
}
"""Each is refused with exit code 2, after `model=x data=train.jsonl`."""

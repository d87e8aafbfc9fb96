"""What the errors mean that a person may meet, for `luthier explain ERROR`.

Each entry quotes words that luthier really prints: a test looks for them in the source.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.errors import EnvironmentProblem, NonFinite, UserError


@dataclass(frozen=True)
class Explained:
    """An error: what luthier prints, what it means, what to do."""

    says: str
    means: str
    do: str


EXIT_CODES = {
    0: "Success.",
    1: "A bug of luthier. Run the same command with --debug and report the traceback.",
    UserError.exit_code: "The input is wrong: a key of the configuration, a row, a path, a model's folder. The message "
    "says where, and what to write.",
    EnvironmentProblem.exit_code: "The machine cannot do it: no permission, a missing package, a hub out of reach, a "
    "full disk.",
    NonFinite.exit_code: "The numbers diverged: a loss or a gradient was NaN or infinite. Nothing was updated with it.",
    130: "Stopped by ctrl-c. A training run finishes its step and saves: luthier train mine.yaml --resume goes on.",
    141: "What read the output (head, less) closed it first. Nothing is wrong.",
    143: "Stopped by SIGTERM. A training run finishes its step and saves: luthier train mine.yaml --resume goes on.",
}
"""Exit code of a command: its meaning."""

ERRORS = {
    "unknown key": Explained(
        "unknown key",
        "A key stands in the configuration that luthier does not have. Keys are never ignored.",
        "Take the key that the message proposes; luthier explain lists all keys.",
    ),
    "another tool's name": Explained(
        "is another tool's name",
        "The key is what another tool calls it. luthier has one spelling for each thing and accepts no other.",
        "Write what the message says; luthier explain NAME answers for single names.",
    ),
    "wrong value": Explained(
        "wrong value",
        "The value has the wrong type or lies outside its bounds. YAML 1.2: no and yes are text, 1e-5 is a number.",
        "luthier explain KEY says what a key takes.",
    ),
    "duplicate key": Explained(
        "stands here a second time",
        "A key is written twice in one map, so one of the two would be ignored.",
        "Delete one of the two.",
    ),
    "not YAML": Explained(
        "this is no YAML",
        "The file does not parse: often a tab, or lines of one map that are not indented alike.",
        "Indent with spaces, all keys of one map alike.",
    ),
    "out of memory": Explained(
        "out of memory",
        "The device had no room for the model, or for a step. What was saved before is whole.",
        "Lower max_tokens_per_micro_batch, which changes no result, or activation_checkpointing=true, or "
        "model.quantization=nf4; then luthier train mine.yaml --resume goes on.",
    ),
    "NaN": Explained(
        "is not finite; nothing was updated with it",
        "A loss or a gradient was NaN or infinite. The message names the rows of the step; the weights are those before it.",
        "Look at the rows (luthier data CONFIG --row FILE:N), lower learning_rate, or use model.dtype=bfloat16 or float32.",
    ),
}
"""Name of an error: its explanation."""


def find(text: str) -> str | None:
    """The explanation of an exit code (`2`, `exit 2`) or of an error named or quoted in `text`; else None."""
    words = text.lower().removeprefix("exit").removeprefix(" code").strip()
    if words.isdigit() and int(words) in EXIT_CODES:
        return f"exit code {int(words)}: {EXIT_CODES[int(words)]}"
    for name, error in ERRORS.items():
        if words and (
            words == name.lower() or error.says.lower() in words or (len(words) > 4 and words in error.says.lower())
        ):
            return f"{name}: {error.means}\nfix: {error.do}"
    return None


def overview() -> str:
    """Names of all errors and exit codes, with a line each."""
    lines = ["exit codes and errors"]
    lines += [f"  {code:<6}{meaning}" for code, meaning in EXIT_CODES.items()]
    lines += [f"  {name}: {error.means}" for name, error in ERRORS.items()]
    return "\n".join(lines)

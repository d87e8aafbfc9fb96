"""Secrets of the user's (tokens, keys, passwords): known by the variables that hold them, and never written anywhere by luthier."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

_NAMES = re.compile(
    r"(?:TOKEN|SECRET|PASSWORD|PASSWD|SSHPASS|PASSPHRASE|CREDENTIALS?|KEY|CONNECTION_STRING|_(?:PAT|PASS|PWD))$",
    re.IGNORECASE,
)
"""How the names of such variables end: HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY, PGPASSWORD, GITHUB_PAT. PWD, or the folder
that PASSWORD_STORE_DIR names, is none."""
_WORDS_OF_A_MODEL = re.compile(r"(?:^|_)(?:EOS|BOS|PAD|UNK|SEP|CLS|MASK)_TOKEN$", re.IGNORECASE)
_LEAST_CHARS = 10
"""A shorter value may be any word of a text, which would be torn by hiding it."""
_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_IN_AN_ADDRESS = re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)")
"""`name:password` of https://name:password@host."""
_RUN = r"(?<![A-Za-z0-9])(?=[a-z0-9]*[A-Z])(?=[A-Za-z]*[0-9]+[A-Za-z]+[0-9])[A-Za-z0-9]{20}"
"""Drawn by chance: words with a year behind them are a name."""
_FORMS = re.compile(
    rf"\bhf_[A-Za-z0-9]{{30,}}\b|(?<![\w-])sk-(?:or-v1-[0-9a-f]{{64}}|(?=[\w-]*?{_RUN})[\w-]+)"
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}\b|\bgithub_pat_\w{50,}\b|\bAKIA[A-Z0-9]{16}\b"
)
"""Tokens that are known by their form: Hugging Face, OpenAI and those who took its form over, GitHub, AWS."""
_FOR_STRANGERS = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TERM|TZ|TMP|TEMP|TMPDIR|LANG|LANGUAGE|SYSTEMROOT|VIRTUAL_ENV"
    r"|(?:LC_|LD_|DYLD_|NIX_|CONDA_|XDG_|PYTHON|COVERAGE_|OMP_|GOMP_|KMP_|MKL_|OPENBLAS_|MALLOC_|TORCH|PYTORCH_|CUDA_|NVIDIA_"
    r"|HIP_|ROCR_|ROCM_|HSA_|GGML_|TOKENIZERS_|LUTHIER_)[A-Z0-9_]*"
)
"""What a process that runs what strangers wrote may know: where its programs lie, the language, and how it shall compute."""


def secrets(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The secrets of this process, the longest first: value -> what holds it."""
    environment = os.environ if environment is None else environment
    found = {
        value: name
        for name, value in environment.items()
        if _is_of_a_secret(name) and len(value) >= _LEAST_CHARS and not _is_plain(name, value)
    }
    if len(kept := _kept_token(environment)) >= _LEAST_CHARS:
        found.setdefault(kept, "the hub's token")
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _is_of_a_secret(name: str) -> bool:
    return bool(_NAMES.search(name)) and not _WORDS_OF_A_MODEL.search(name)


def _is_plain(name: str, value: str) -> bool:
    """A word of a template, a text, the file that holds the secret, or a key of another kind, as of a table."""
    if value.startswith("<") or any(map(str.isspace, value)) or (os.path.isabs(value) and os.path.exists(value)):
        return True
    return name.upper().endswith("KEY") and not any(map(str.isdigit, value))


def _kept_token(environment: Mapping[str, str]) -> str:
    """What `hf auth login` has written, where huggingface_hub looks for it; nothing where it has not."""
    home = environment.get("HF_HOME") or os.path.join(environment.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    file = environment.get("HF_TOKEN_PATH") or os.path.join(home, "token")
    try:
        return Path(os.path.expandvars(os.path.expanduser(file))).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def held_in(text: str) -> str:
    """What holds a secret that stands in a text, or what it looks like; nothing where none does."""
    if name := next((name for value, name in secrets().items() if value in text), ""):
        return name
    if _FORMS.search(text):
        return "a token"
    return "a password" if _ADDRESS.match(text) and _IN_AN_ADDRESS.search(text) else ""


def redacted(text: str) -> str:
    """A text with what holds a secret in the place of each."""
    return hider()(text)


def hider() -> Callable[[str], str]:
    """What `redacted` does, for many texts: the secrets are looked for once."""
    known = secrets()

    def hide(text: str) -> str:
        for value, name in known.items():
            text = text.replace(value, f"[{name}]")
        return _IN_AN_ADDRESS.sub("[password]", _FORMS.sub("[token]", text))

    return hide


def without_secrets() -> dict[str, str]:
    """The environment for a process that runs what strangers wrote: a few variables that it needs, and none that holds a secret."""
    hide = hider()
    return {
        name: value
        for name, value in os.environ.items()
        if _FOR_STRANGERS.fullmatch(name) and not _is_of_a_secret(name) and hide(value) == value
    }

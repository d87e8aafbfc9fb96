"""Secrets of the user's (tokens, keys, passwords): known by the variables that hold them, and never written anywhere by luthier."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

_NAMES = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|(?:API|ACCESS|SECRET|PRIVATE|AUTH)_?KEY)$",
    re.IGNORECASE,
)
"""How the names of such variables end: HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_PASSWORD. PWD, or the
folder that PASSWORD_STORE_DIR names, is none."""
_LEAST_CHARS = 10
"""A shorter value may be any word of a text, which would be torn by hiding it."""
_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_IN_AN_ADDRESS = re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)")
"""`name:password` of https://name:password@host."""
_FORMS = re.compile(r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16})\b")
"""Tokens that are known by their form: Hugging Face, OpenAI, GitHub, AWS."""


def secrets(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The secrets of this process, the longest first: value -> what holds it."""
    environment = os.environ if environment is None else environment
    found = {
        value: name
        for name, value in environment.items()
        if _NAMES.search(name) and len(value) >= _LEAST_CHARS and not Path(value).is_absolute()
    }
    if len(kept := _kept_token(environment)) >= _LEAST_CHARS:
        found.setdefault(kept, "the hub's token")
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _kept_token(environment: Mapping[str, str]) -> str:
    """What `hf auth login` has written; nothing where it has not."""
    home = environment.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    try:
        return Path(environment.get("HF_TOKEN_PATH") or f"{home}/token").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def held_in(text: str) -> str:
    """What holds a secret that stands in a text, or what it looks like; nothing where none does."""
    for value, name in secrets().items():
        if value in text:
            return name
    if _FORMS.search(text):
        return "a token"
    return "a password" if _ADDRESS.match(text) and _IN_AN_ADDRESS.search(text) else ""


def redacted(text: str) -> str:
    """A text with what holds a secret in the place of each."""
    for value, name in secrets().items():
        text = text.replace(value, f"[{name}]")
    return _IN_AN_ADDRESS.sub("[password]", _FORMS.sub("[token]", text))


def without_secrets() -> dict[str, str]:
    """The environment for a process that runs what strangers wrote."""
    hidden = secrets()
    return {name: value for name, value in os.environ.items() if value not in hidden and not _NAMES.search(name)}

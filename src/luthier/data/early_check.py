"""What can be told of a configuration's data before anything heavy is imported or fetched: nobody waits for torch or for a
model to be told of a name that is written wrongly.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from luthier import component
from luthier.config import RunConfig
from luthier.data.chat.library import NAMED_TOKENS, Facts, of_any_model, of_model_type
from luthier.data.chat.template import read_template
from luthier.data.files import Source, is_of_hub
from luthier.data.readers import Limits
from luthier.data.recognise import files_of, row_parser_of, sources_of
from luthier.errors import BadRow, UserError
from luthier.models.sources.resolve import at_hand, named, refuse_missing
from luthier.objectives import TEACHER
from luthier.system.strict_json import map_in
from luthier.types import Conversation, Row

TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")


def check(config: RunConfig) -> None:
    """Raises UserError where the template's name or a file is wrong, as the run would say it later."""
    if config.data.chat_template != "auto":
        read_template(config.data.chat_template)
    objective = component.make("objectives", config.objective)
    found, limits = list[tuple[str, Source]](), Limits.of(config.data)
    for purpose, key, file in files_of(config, objective.takes):
        if not is_of_hub(file):
            found += [(purpose, replace(source, limits=limits)) for source in sources_of(config, key, file)]
    refuse_missing(config.model.path)
    if objective.teaching is not None:
        with named(TEACHER):
            refuse_missing(objective.teaching.teacher)
    folder = at_hand(config.model.path, config.model.revision)
    if config.data.chat_template == "auto" and folder is not None and _has_no_template(folder):
        _refuse_conversations(found, folder)


def model_type_of(folder: Path) -> str:
    """What config.json says that a model is; "" where it does not."""
    return str(map_in(folder / "config.json").get("model_type", ""))


def _has_no_template(folder: Path) -> bool:
    """Whether a model's files hold a tokenizer and no chat template."""
    if not (folder / TOKENIZER_FILES[0]).is_file() or any((folder / name).exists() for name in TEMPLATE_FILES):
        return False
    return not map_in(folder / TOKENIZER_FILES[0]).get("chat_template")


def _refuse_conversations(found: list[tuple[str, Source]], folder: Path) -> None:
    """Raises UserError where the first row of a file is a conversation, for which the model has no template; proposes those of its
    family whose tokens stand in the tokenizer's files.
    """
    if not any(isinstance(_first_example(*one), Conversation) for one in found):
        return
    held = b"".join((folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file())

    def has(facts: Facts) -> bool:
        return all(token in NAMED_TOKENS or token.encode() in held for token in (*facts.tokens, *facts.stop))

    names = [facts.full_name for facts in of_model_type(model_type_of(folder)) if has(facts)] or of_any_model(has)
    more = f"; {', '.join(names[1:4])} would do, too" if names[1:] else ""
    raise UserError(
        "data.chat_template",
        "the model's tokenizer has no chat template (a base model has none)",
        f"a template{more}",
        f"data.chat_template={names[0]}",
    )


def _first_example(purpose: str, source: Source) -> object:
    """The first row as its format reads it; None where that is not to be told."""
    parser, rows = row_parser_of(source, source.rows(), f"data.{purpose}")
    for row in rows:
        if parser is not None and isinstance(row, Row):
            try:
                return parser.parse(row)
            except BadRow:
                continue
    return None

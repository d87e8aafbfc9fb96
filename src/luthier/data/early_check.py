"""What can be told of a configuration's data before anything heavy is imported or fetched: nobody waits for torch or for a
model to be told of a name that is written wrongly.
"""

from __future__ import annotations

from luthier import component
from luthier.config import RunConfig
from luthier.data.chat.template import read_template
from luthier.data.files import is_of_hub, sources
from luthier.data.recognise import files_of


def check(config: RunConfig) -> None:
    """Raises UserError where the template's name or a file is wrong, as the run would say it later."""
    if config.data.chat_template != "auto":
        read_template(config.data.chat_template)
    objective = component.make("objectives", config.objective)
    for _, key, file in files_of(config, objective.takes):
        if not is_of_hub(file):
            sources(file, f"{key}.path")

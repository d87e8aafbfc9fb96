"""The configuration of a run: one YAML file as one frozen, strict tree."""

from luthier.config.placed import placed
from luthier.config.reading import (
    Typed,
    apply_override,
    assemble,
    build,
    data_entry,
    data_file,
    from_dict,
    load,
    parsed,
)
from luthier.config.sections import DataConfig, DataFile, ModelConfig, RunConfig, TrainingConfig

__all__ = [
    "DataConfig",
    "DataFile",
    "ModelConfig",
    "RunConfig",
    "TrainingConfig",
    "Typed",
    "apply_override",
    "assemble",
    "build",
    "data_entry",
    "data_file",
    "from_dict",
    "load",
    "parsed",
    "placed",
]

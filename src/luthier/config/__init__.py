"""The configuration of a run: one YAML file as one frozen, strict tree."""

from luthier.config.reading import apply_override, assemble, build, data_entry, data_file, from_dict, load
from luthier.config.sections import DataConfig, DataFile, ModelConfig, RunConfig, TrainingConfig

__all__ = [
    "DataConfig",
    "DataFile",
    "ModelConfig",
    "RunConfig",
    "TrainingConfig",
    "apply_override",
    "assemble",
    "build",
    "data_entry",
    "data_file",
    "from_dict",
    "load",
]

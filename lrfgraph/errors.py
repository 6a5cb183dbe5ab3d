"""Errors a user can cause: each says what is wrong, what was received and what to do."""

from __future__ import annotations

__all__ = [
    "CapacityError",
    "ClusterError",
    "ConfigurationError",
    "DataError",
    "Interrupted",
    "LayerError",
    "LrfError",
    "ModelError",
    "OutputError",
    "RecipeError",
    "StoreError",
]


class LrfError(Exception):
    """Something the user can mend; the command line prints it as one line and exits with `exit_code`."""

    exit_code = 2


class RecipeError(LrfError):
    """An option or a recipe key that is unknown or out of range."""


class ModelError(LrfError):
    """A model file that cannot be read, or a model that cannot be compressed."""


class LayerError(ModelError):
    """A layer asked for something that its kind does not have."""


class DataError(LrfError):
    """Images or labels that are missing, misshapen or out of range."""


class ConfigurationError(LrfError):
    """A configuration that does not fit the model, or a target that no configuration meets."""


class StoreError(LrfError):
    """The cache folder cannot be written, is full, or is over its budget."""


class CapacityError(LrfError):
    """A run that needs more memory than there is."""


class ClusterError(LrfError):
    """A Dask scheduler that cannot be reached, or a worker of it that cannot compute what the run asks for."""


class OutputError(LrfError):
    """The output folder cannot be written."""


class Interrupted(LrfError):  # noqa: N818 - the user did it, nothing is wrong
    """The run was stopped from outside; what is committed stays and the same command goes on."""

    exit_code = 130

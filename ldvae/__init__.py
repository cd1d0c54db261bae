"""Linearly decoded variational autoencoder for single-cell counts, and gene programs from it."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ldvae._settings import settings
from ldvae.errors import InputError

if TYPE_CHECKING:
    from ldvae import model, pl, programs, simulate, sweep
    from ldvae.model import LinearSCVI
    from ldvae.results import read_results
    from ldvae.sweep import fit_sweep

    __version__: str

__all__ = [
    "InputError",
    "LinearSCVI",
    "__version__",
    "fit_sweep",
    "model",
    "pl",
    "programs",
    "read_results",
    "settings",
    "simulate",
    "sweep",
]

OBJECTS = {"LinearSCVI": "ldvae.model", "fit_sweep": "ldvae.sweep", "read_results": "ldvae.results"}
MODULES = {"model", "pl", "programs", "simulate", "sweep"}


def __getattr__(name: str) -> Any:
    # Only whoever asks for the model waits for torch: not the workflow, which reads ldvae.config for every job.
    if name == "__version__":  # in a clone, the workflow is planned where ldvae is not installed
        return version("ldvae")
    if name in OBJECTS:
        return getattr(import_module(OBJECTS[name]), name)
    if name in MODULES:
        return import_module(f"ldvae.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

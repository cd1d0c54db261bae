"""Linearly decoded variational autoencoder for single-cell counts, and gene programs from it."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ldvae._settings import settings
from ldvae.errors import InputError

if TYPE_CHECKING:
    from ldvae.model import LinearSCVI

__version__ = version("ldvae")

__all__ = ["InputError", "LinearSCVI", "__version__", "settings"]


def __getattr__(name: str) -> Any:
    # Only whoever asks for the model waits for torch: not the workflow, which reads ldvae.config for every job.
    if name == "LinearSCVI":
        from ldvae.model import LinearSCVI

        return LinearSCVI
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

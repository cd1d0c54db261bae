"""Linearly decoded variational autoencoder for single-cell counts, and gene programs from it."""

from importlib.metadata import version

from ldvae.errors import InputError
from ldvae.model import LinearSCVI

__version__ = version("ldvae")

__all__ = ["InputError", "LinearSCVI", "__version__"]

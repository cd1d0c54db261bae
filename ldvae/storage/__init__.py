"""Save and load models (safetensors, JSON, CSV); import and export of scvi-tools checkpoints. No pickle is executed."""

from ldvae.storage.checkpoint import read_checkpoint
from ldvae.storage.folder import adata_path, read_model, write_model
from ldvae.storage.saved import SavedModel, weights_hash
from ldvae.storage.scvi_tools import read_legacy, reference_attributes, scvi_names, write_scvi_tools

__all__ = [
    "SavedModel",
    "adata_path",
    "read_checkpoint",
    "read_legacy",
    "read_model",
    "reference_attributes",
    "scvi_names",
    "weights_hash",
    "write_model",
    "write_scvi_tools",
]

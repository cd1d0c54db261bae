"""The default config file, read before Snakemake reads it: its own message of a mistake does not tell where it is."""

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# An `ldvae` that is installed beside Snakemake is found without its environment being active.
os.environ.update(PATH=os.pathsep.join([*os.get_exec_path(), str(Path(sys.executable).parent)]))

from ldvae.config import load_config
from ldvae.errors import InputError


def readable(path):
    """The path of a config file, or a WorkflowError that tells what is wrong with it, and where."""
    try:
        load_config(Path(path))
    except InputError as error:
        raise WorkflowError(str(error))
    return path

"""The results folder of a dataset.

`files` has every file by name, with what it holds, which verb writes it and which verbs read it. The steps, the rules
of Snakemake and the processes of Nextflow take their paths from there, and from nowhere else. `state` says what stands
in a folder: runs, options, failures. `folder` reads it in Python.
"""

from ldvae.results.files import *  # noqa: F403  # the files, and what is asked of their table
from ldvae.results.folder import ResultsFolder, read_results
from ldvae.results.state import (
    failure_file,
    failures,
    keep_plan,
    made_otherwise,
    other_options,
    records_others,
    require_inputs,
    require_writable,
    runs_of,
    values_to_train,
    write_plan,
)

__all__ = [
    "ResultsFolder",
    "failure_file",
    "failures",
    "keep_plan",
    "made_otherwise",
    "other_options",
    "read_results",
    "records_others",
    "require_inputs",
    "require_writable",
    "runs_of",
    "values_to_train",
    "write_plan",
]

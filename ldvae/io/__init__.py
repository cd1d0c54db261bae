"""Readers of every input format, and writers of what the steps write.

`read` puts the parts together: `formats` finds the reader of a file (`hdf5`, `mtx` or `text`), which gives what is
`stored` in it; `matrices` and `annotation` make it verified counts with tidy tables, `several` one of many files.
`chunks` reads matrices some rows at a time, those that are not stored so after `by_rows` has written them anew.
"""

from ldvae.io.annotation import MAX_CELLS, group_names, meant_group, objects_to_categories, obs_column, require_columns
from ldvae.io.chunks import ChunkedCounts, ChunkedMatrix, RawMatrix, write_chunked, write_matrices, write_rows
from ldvae.io.formats import files_of, sha256_of_input
from ldvae.io.hdf5 import read_h5ad, read_without_matrices
from ldvae.io.messages import collected_warnings, first_names
from ldvae.io.read import counts_of, read_file, read_input, reading_options
from ldvae.io.stored import has_neighbors, in_memory
from ldvae.io.text import read_annotation, read_gene_list, read_gmt
from ldvae.io.write import atomic, plain, read_table, write_json, write_svgs, write_table, write_text

__all__ = [
    "MAX_CELLS",
    "ChunkedCounts",
    "ChunkedMatrix",
    "RawMatrix",
    "atomic",
    "collected_warnings",
    "counts_of",
    "files_of",
    "first_names",
    "group_names",
    "has_neighbors",
    "in_memory",
    "meant_group",
    "objects_to_categories",
    "obs_column",
    "plain",
    "read_annotation",
    "read_file",
    "read_gene_list",
    "read_gmt",
    "read_h5ad",
    "read_input",
    "read_table",
    "read_without_matrices",
    "reading_options",
    "require_columns",
    "sha256_of_input",
    "write_chunked",
    "write_json",
    "write_matrices",
    "write_rows",
    "write_svgs",
    "write_table",
    "write_text",
]

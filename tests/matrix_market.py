"""A matrix as Cell Ranger writes it: three files in a folder."""

import gzip
from pathlib import Path

import numpy as np


def write_matrix(folder: Path, value: int = 1, n_obs: int = 40, n_vars: int = 30) -> Path:
    """Write matrix.mtx, features.tsv.gz and barcodes.tsv.gz; most counts are `value`. Returns the matrix."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = np.full((n_vars, n_obs), value)
    counts[:, :3] = 0
    counts[0] = np.arange(n_obs) % 5
    entries = [f"{gene + 1} {cell + 1} {counts[gene, cell]}" for gene, cell in np.argwhere(counts)]
    lines = ["%%MatrixMarket matrix coordinate integer general", f"{n_vars} {n_obs} {len(entries)}", *entries]
    path = folder / "matrix.mtx"
    path.write_text("\n".join(lines) + "\n")
    tables = {
        "features": [f"ENSG{i:011}\tGENE{i}\tGene Expression" for i in range(n_vars)],
        "barcodes": [f"{i:016b}".translate(str.maketrans("01", "AC")) + "-1" for i in range(n_obs)],
    }
    for name, rows in tables.items():
        with gzip.open(folder / f"{name}.tsv.gz", "wt") as table:
            table.write("\n".join(rows) + "\n")
    return path

"""What the workflow makes again when a file changes that an input holds or has beside it; steps are stubs."""

import gzip
import os
from collections import Counter
from pathlib import Path

import pytest
from downloads import READ_ONLY, WITHOUT_SUFFIX, served
from matrix_market import write_matrix
from workplace import Workplace

from ldvae import results as layout

pytestmark = pytest.mark.thorough


QC = ("results/a/qc/filtered.h5ad", "results/b/qc/filtered.h5ad")


def replace(path: Path) -> None:
    """Change a file and leave the time stamp of its folder as it was."""
    before = path.parent.stat()
    data = path.read_bytes()
    path.write_bytes(gzip.compress(gzip.decompress(data), mtime=1) if path.suffix == ".gz" else data + b"\n")
    os.utime(path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_inside_an_input_or_beside_it_reruns_what_reads_it(tmp_path, stubs):
    folder = tmp_path / "place"
    write_matrix(folder / "ten x")
    write_matrix(folder / "alone")
    datasets = {"a": {"input": "ten x"}, "b": {"input": "alone/matrix.mtx"}}
    place = Workplace(folder, {"datasets": datasets, "setup": {"genes": "all"}}, stubs)
    place.snakemake(*QC)
    assert place.pending(*QC) == Counter()

    replace(folder / "ten x" / "matrix.mtx")
    assert place.pending(*QC) == {"qc": 1, "qc:a": 1}
    replace(folder / "alone" / "barcodes.tsv.gz")
    assert place.pending(*QC) == {"qc": 2, "qc:a": 1, "qc:b": 1}


def test_counts_come_from_urls_without_a_suffix(tmp_path, counts):
    """Real steps: what was fetched is known by its content."""
    with served(counts) as address:
        datasets = {name: f"{address}/{path}" for name, path in WITHOUT_SUFFIX.items()}
        place = Workplace(tmp_path / "place", {"datasets": datasets, "qc": READ_ONLY}, dict(os.environ))
        place.snakemake(*(f"results/{name}/qc/filtered.h5ad" for name in datasets))
    for name in datasets:
        assert layout.QC_SUMMARY.read(place.folder / "results" / name)["n_obs_before"] == 60

"""`snakemake --sdm apptainer`: every job is started in the image."""

import pytest
from workplace import ROOT, Workplace

pytestmark = pytest.mark.thorough

SHIM = """#!/bin/sh
# apptainer, as far as Snakemake calls it: writes down the image and runs the command outside of it.
case "$1" in --version) echo "apptainer version 1.3.0"; exit ;; esac
image= command=
for word in "$@"; do case $word in *.sif) image=$word ;; esac; command=$word; done
echo "$image" >> "{folder}/images.txt"
exec bash -c "$command"
"""


def test_every_rule_names_its_image():
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        text = path.read_text()
        assert text.count("conda:\n") == text.count("container:\n"), path.name


def test_every_job_is_started_in_the_image(tmp_path, stubs):
    """Of Snakemake's part, with a stand-in for Apptainer."""
    shim = tmp_path / "bin" / "apptainer"
    shim.parent.mkdir()
    shim.write_text(SHIM.format(folder=tmp_path))
    shim.chmod(0o755)
    shim.with_name("singularity").symlink_to(shim)
    path = f"{shim.parent}:{stubs['PATH']}"
    config = {"datasets": {"a": {"input": "demo:pbmc68k"}}, "setup": {"genes": "all"}, "sweep": {"seeds": [0]}}
    place = Workplace(tmp_path / "place", config, stubs | {"PATH": path, "LDVAE_IMAGE": "/images/mine.sif"})
    place.snakemake("results/a/setup/counts.h5ad", "--sdm", "apptainer")
    assert (tmp_path / "images.txt").read_text().splitlines() == ["/images/mine.sif"] * 2

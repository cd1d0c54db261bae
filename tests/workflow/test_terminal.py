"""What a run says in the terminal."""

import os
import time

from workplace import Workplace


def test_quiet_runs_say_one_line_for_each_job_and_at_the_end_what_was_found(tmp_path, config, stubs):
    place = Workplace(tmp_path, {"datasets": {"a": config["datasets"]["a"]}, "sweep": {"seeds": [0]}}, stubs)
    log = tmp_path / "logs" / "index" / "index.log"
    log.parent.mkdir(parents=True)
    found = "INFO Finished: 1 dataset.\na: 7 programs in 700 cells.\nNext: open it.\n"
    log.write_text(f"10:00:00 INFO ldvae index on here\n10:00:01 {found}")
    os.utime(log, (time.time() + 600,) * 2)  # as if this run had written it
    said = place.snakemake("results/a/setup/counts.h5ad", "--quiet", "rules", "host").splitlines()
    assert [line.partition(":")[0] for line in said if line.startswith("[")] == ["[1/2] qc a", "[2/2] setup a"]
    assert next(line for line in said if line.startswith("Finished after ")).endswith(": 1 dataset.")
    assert {"a: 7 programs in 700 cells.", "Next: open it."} <= set(said)
    assert len(said) < 20


def test_errors_are_told_though_all_else_is_quiet(tmp_path, config, stubs):
    place = Workplace(tmp_path, {**config, "trian": {}}, stubs)
    said = place.snakemake("--quiet", "all", check=False)
    assert said.count("trian: there is no such key. Did you mean 'train'") == 1
    place = Workplace(tmp_path, config, stubs)
    assert place.snakemake("results/a/runs.tsv", "--quiet", "all") == ""

"""What a Slurm allows, read from what its commands print."""

import pytest

from ldvae.config import slurm
from ldvae.config.slurm import Pending, Request

SINFO = """cpu*|10:00:00|8000|4|(null)
cpu*|10:00:00|64000|32|(null)
gpu|1:00:00|8000|4|gpu:a100:2(S:0-1)
mig|infinite|4000|8|gpu:2g.10gb:4,gpu:3g.20gb:1,license:7
any|1-00:00:00|4000|8|gpu:1
"""


@pytest.fixture
def known():
    return slurm.read_partitions(SINFO)


def test_a_partition_has_what_its_largest_node_has(known):
    assert known["cpu"] == ("cpu", 600, 64000, 32, 0, True)
    assert [known[name].gpus for name in ("gpu", "mig", "any")] == [2, 5, 1]
    assert [known[name].minutes for name in ("gpu", "mig", "any")] == [60, float("inf"), 1440]


def test_what_fits_is_no_problem(known):
    fitting = [Request("train", "gpu", 60, 8000, 4, 1), Request("qc", None, None, None, 1, 0)]
    assert slurm.problems(fitting, known) == []
    assert slurm.problems([Request("qc", None, 10**6, None, 1, 0)], {}) == []  # sinfo did not answer


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request("train", "gpus", 1, 1, 1, 1), "there is no partition 'gpus'; there are cpu, gpu, mig, any."),
        (Request("train", "gpu", 61, 1, 1, 1), "train asks for 61 minutes, and partition gpu has at most 60: lower"),
        (Request("train", None, 1, 1, 1, 1), "a node of partition cpu has 0: write slurm_partition: gpu into"),
        (Request("train", "any", 1, 5000, 1, 1), "5000 MB of memory, and partition any has at most 4000: lower"),
        (Request("train", "gpu,any", 1, 1, 9, 1), "9 CPUs, and partition gpu or any has at most 8: lower"),
    ],
)
def test_a_request_that_no_partition_has_names_the_line_to_change(known, request_, told):
    problems = slurm.problems([request_, request_], known)
    assert len(problems) == 1
    assert told in problems[0]
    assert "set-resources" in problems[0] or "slurm_partition" in problems[0]


def test_a_job_is_told_that_waits_for_what_never_comes_and_no_other():
    jobs = [
        Pending(str(i), reason, "gpu", "2:00:00", "rule_train_wildcards_a_k10-s0-3fa9c1", "/work")
        for i, reason in enumerate(
            ["Resources", "Priority", "QOSMaxCpuPerUserLimit", "PartitionTimeLimit", "QOSMaxWallDurationPerJobLimit"]
        )
    ]
    told = slurm.never_start(jobs)
    assert list(told) == ["3", "4"]
    assert "(train a k10-s0-3fa9c1) waits for PartitionTimeLimit" in told["3"]
    assert "`compute: max_runtime`" in told["4"]

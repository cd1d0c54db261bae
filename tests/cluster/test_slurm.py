"""`snakemake --profile slurm` on a real Slurm: the demo, and what clusters do to jobs."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from clones import LONG, Project, copy, small, targets, until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("slurm")]


def gpus(job: dict[str, str]) -> str:
    """What GPUs a job asked for: per job (--gpus) or per node (--gres)."""
    return job.get("TresPerJob", job.get("TresPerNode", ""))


def training_for_a_while(project: Project):
    """Whether a training is at work, beyond its first epochs."""
    return lambda: len([line for line in project.train_log().splitlines() if " epoch " in line]) > 1


@pytest.fixture(scope="module")
def demo(slurm, clone) -> Project:
    """The demo, run by the literal command from a fresh clone to which only the site file was added."""
    project = clone()
    project.run("--profile", "slurm", seconds=3000)
    return project


def test_the_literal_command_runs_the_demo_and_training_alone_gets_a_gpu(demo):
    assert (demo.folder / "results/pbmc68k/report.html").stat().st_size > 100_000
    assert (demo.folder / "results/index.html").exists()
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=demo.folder, capture_output=True, text=True).stdout
    assert {line.split()[1] for line in changed.splitlines()} <= {"profiles/"}
    training, others = demo.train_jobs(), [job for job in demo.jobs() if job not in demo.train_jobs()]
    assert len(training) == 5
    assert {(job["Partition"], gpus(job)) for job in training} == {("gpu", "gres:gpu:1")}
    assert {(job["Partition"], gpus(job)) for job in others} == {("cpu", "")}
    assert {job["JobState"] for job in demo.jobs()} == {"COMPLETED"}
    logs = [path.read_text() for path in (demo.folder / "logs/train/pbmc68k").iterdir()]
    assert {re.search(r"job (\d+)", log)[1] for log in logs} == {job["JobId"] for job in training}
    assert all("CUDA_VISIBLE_DEVICES" in log for log in logs)  # granted; these GPUs are not real
    granted = [
        log for log in (demo.folder / "logs/train/pbmc68k").iterdir() if "CUDA_VISIBLE_DEVICES" in log.read_text()
    ]
    assert len(granted) == 5


def test_a_changed_de_option_submits_de_and_report_alone(demo):
    before = len(demo.jobs())
    config = demo.folder / "config/config.yaml"
    config.write_text(config.read_text().replace("delta: 0.25", "delta: 0.5"))
    demo.run("--profile", "slurm")
    assert [job["Comment"].split("_")[1] for job in demo.jobs()[before:]] == ["de", "report"]


def test_a_requeued_and_then_preempted_training_ends_in_the_same_bits(ready, undisturbed):
    ready.site(**{"set-resources": {"train": {"slurm_partition": "cpu", "gpu": 0}}})  # where jobs are preempted
    snakemake = ready.start("--profile", "slurm", *targets(ready))
    until(training_for_a_while(ready))
    job = ready.train_jobs()[0]["JobId"]
    subprocess.run(["scontrol", "requeue", job], check=True)
    run_again_at_once(ready, job, restarts=1)
    until(lambda: "Resumed from epoch" in ready.train_log())
    urgent = ["sbatch", "-p", "urgent", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3"]
    subprocess.run(urgent, check=True, cwd="/", capture_output=True)
    run_again_at_once(ready, job, restarts=2)
    assert snakemake.wait() == 0
    assert [(job["Restarts"], job["JobState"]) for job in ready.train_jobs()] == [("2", "COMPLETED")]
    assert ready.train_log().count("Resumed from epoch") == 1  # Snakemake removes a log when its job starts again
    assert ready.bits() == undisturbed
    assert not list(ready.folder.glob("checkpoints/*/*"))


def run_again_at_once(project: Project, job: str, restarts: int) -> None:
    """Spare the two minutes that Slurm keeps a requeued job waiting."""
    until(
        lambda: record(project, job)["Restarts"] == str(restarts) and record(project, job)["JobState"] != "COMPLETING"
    )
    if record(project, job)["JobState"] == "PENDING":
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)


def record(project: Project, job: str) -> dict[str, str]:
    return next(record for record in project.jobs() if record["JobId"] == job)


@pytest.fixture
def one_hour(slurm):
    """The partition gpu allows one hour."""
    limit = ["scontrol", "update", "PartitionName=gpu"]
    subprocess.run([*limit, "MaxTime=60"], check=True)
    yield
    subprocess.run([*limit, "MaxTime=600"], check=True)


def test_trainings_of_small_data_fit_a_partition_of_one_hour(ready, one_hour):
    ready.configure(**small({"max_epochs": 5}))
    log = ready.run("--profile", "slurm", *targets(ready))
    assert [(job["TimeLimit"], job["JobState"]) for job in ready.train_jobs()] == [("00:20:00", "COMPLETED")]
    assert "the most that its partition has" not in log


def test_a_training_that_may_need_more_than_its_partition_has_asks_for_that(ready, one_hour):
    ready.configure(**small({"max_epochs": 5}))
    ready.ask("train", minutes=[90, 0])
    log = ready.run("--profile", "slurm", *targets(ready))
    assert [(job["TimeLimit"], job["JobState"]) for job in ready.train_jobs()] == [("01:00:00", "COMPLETED")]
    assert log.count("train: asks for 60 of 90 minutes, the most that its partition has") == 1


def test_what_no_partition_has_is_refused_before_the_first_job(ready):
    ready.site(**{"set-resources": {"train": {"slurm_partition": "cpu", "runtime": 700}}})
    log = ready.run("--profile", "slurm", *targets(ready), expect=1)
    assert "a node of partition cpu has 0: write slurm_partition: gpu" in log
    assert "train asks for 700 minutes, and partition cpu has at most 600" in log
    assert not ready.jobs()


def test_a_job_that_can_never_start_is_told_while_it_waits(ready):
    """The file of partitions promises more than there is."""
    resources = {"default-resources": ["mem_mb=1000", "runtime=20"], "set-resources": {"train": {"runtime": 700}}}
    ready.site(**resources, **{"slurm-partition-config": "slurm/partitions.example.yaml"})
    snakemake = ready.start("--profile", "slurm", *targets(ready))
    until(ready.train_jobs)
    began = time.monotonic()
    until(lambda: "waits for PartitionTimeLimit" in ready.log.read_text())
    print(f"\ntold after {time.monotonic() - began:.0f} s")
    assert "lower `compute: max_runtime`" in ready.log.read_text()
    snakemake.send_signal(signal.SIGINT)
    snakemake.wait()
    subprocess.run(["scancel", *(job["JobId"] for job in ready.train_jobs())], check=True)


def test_a_mistake_of_the_user_is_submitted_once(ready):
    ready.configure(**small(qc={"min_genes": 9999, "n_mads": None}))
    log = ready.run("--profile", "slurm", "results/tiny/qc/filtered.h5ad", expect=1)
    assert len(ready.jobs()) == 1
    assert "tiny: ldvae qc failed" in log


def test_out_of_memory_asks_for_more_and_partitions_can_be_chosen_by_a_file(ready):
    ready.configure(**small({"max_epochs": 5}))
    ready.site(
        **{
            "default-resources": ["mem_mb=1000", "runtime=20"],
            "set-resources": None,
            "slurm-partition-config": "slurm/partitions.example.yaml",
        }
    )
    ready.ask("train", mem_mb=[700, 0])  # Snakemake itself needs half of it
    ready.run("--profile", "slurm", *targets(ready))
    memory = [int(job["MinMemoryNode"].removesuffix("M")) for job in ready.train_jobs()]
    states = [job["JobState"] for job in ready.train_jobs()]
    assert states == ["OUT_OF_MEMORY", "COMPLETED"] or states == ["FAILED", "COMPLETED"]
    assert memory == [700, 1400]
    assert {job["Partition"] for job in ready.train_jobs()} == {"gpu"}


def test_a_training_over_its_time_limits_goes_on_and_a_gpu_model_can_be_asked_for(ready, tmp_path):
    """Limits of 1, 2, 4, … minutes, for a training of two minutes on an idle CPU."""
    # Each attempt asks for more memory too: as much as a node has, and no more.
    ready.configure(**small(LONG | {"max_epochs": 12_000}, compute={"max_mem_mb": 7000}))
    alone = copy(ready, tmp_path / "alone")
    undisturbed = alone.start("--cores", "1", *targets(alone))
    ready.site(**{"set-resources": {"train": {"slurm_partition": "gpu", "gpu_model": "a100"}}, "retries": 5})
    ready.ask("train", minutes=[1, 0], minutes_per_1e9_values=0)
    ready.run("--profile", "slurm", *targets(ready))
    jobs = ready.train_jobs()
    print("\n", [(job["TimeLimit"], job["JobState"], job["RunTime"]) for job in jobs])
    assert len(jobs) > 1
    assert [job["JobState"] for job in jobs] == ["TIMEOUT"] * (len(jobs) - 1) + ["COMPLETED"]
    assert [job["TimeLimit"] for job in jobs] == [f"00:{2**attempt:02}:00" for attempt in range(len(jobs))]
    assert {gpus(job) for job in jobs} == {"gres:gpu:a100:1"}
    assert "Resumed from epoch" in ready.train_log()
    assert undisturbed.wait() == 0
    assert ready.bits() == alone.bits()


def test_a_cancelled_training_is_submitted_again_and_a_site_may_want_gres(ready, undisturbed):
    ready.site(**{"set-resources": {"train": {"slurm_partition": "gpu", "gpu": 0, "gres": "gpu:1"}}})
    snakemake = ready.start("--profile", "slurm", *targets(ready))
    until(training_for_a_while(ready))
    subprocess.run(["scancel", ready.train_jobs()[0]["JobId"]], check=True)
    assert snakemake.wait() == 0
    jobs = ready.train_jobs()
    assert [job["JobState"] for job in jobs] == ["CANCELLED", "COMPLETED"]
    assert [gpus(job) for job in jobs] == ["gres:gpu:1", "gres:gpu:1"]
    assert "TresPerNode" in jobs[0]  # --gres, not --gpus
    assert "Resumed from epoch" in ready.train_log()
    assert ready.bits() == undisturbed


def test_a_failing_dataset_does_not_stop_the_others_and_the_last_lines_say_which(ready):
    config = small({"max_epochs": 5})
    config["datasets"]["broken"] = {"input": "counts.h5ad", "train": {"lr": 1e30}}
    ready.configure(**config)
    results = [f"results/{name}/select/best.json" for name in ("tiny", "broken")]
    log = ready.run("--profile", "slurm", "--retries", "0", *results, expect=1)
    assert (ready.folder / results[0]).exists()
    assert not (ready.folder / results[1]).exists()
    last = log[log.rindex("NaN or infinite") - 3000 :]
    assert "logs/train/broken" in last
    assert "Lower lr" in last


@pytest.mark.parametrize("runs_per_job", [1, 15])
def test_sixty_runs_complete_without_flooding_the_scheduler(ready, runs_per_job, record_property):
    ready.configure(
        **small(
            {"max_epochs": 3},
            sweep={"seeds": list(range(15)), "grid": {"n_latent": [2, 3, 4, 5]}},
            compute={"runs_per_job": runs_per_job, "device": "cpu", "max_runtime": 60},  # as the partition allows
        )
    )
    ready.site(**{"set-resources": {"train": {"slurm_partition": "cpu,gpu"}}})
    wanted = targets(ready)
    assert len(wanted) == 60
    begun = time.monotonic()
    ready.run("--profile", "slurm", "--jobs", "20", *wanted, seconds=3000)
    wall = time.monotonic() - begun
    jobs = ready.train_jobs()
    assert len(jobs) == 60 / runs_per_job
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    assert all(json.loads((ready.folder / path).read_text())["n_train"] for path in wanted)
    print(f"\n60 runs, {runs_per_job} per job: {len(jobs)} jobs, {wall:.0f} s")


def test_packed_runs_are_those_of_jobs_of_their_own_and_a_new_seed_trains_itself_alone(ready, tmp_path):
    single = copy(ready, tmp_path / "single")
    for project, runs_per_job in ((single, 1), (ready, 3)):
        project.configure(**small({"max_epochs": 5}, sweep={"seeds": [0, 1]}, compute={"runs_per_job": runs_per_job}))
        project.run("--profile", "slurm", *targets(project))
    assert [gpus(job) for job in ready.train_jobs()] == ["gres:gpu:1"]
    assert ready.bits() == single.bits()
    before = ready.bits()
    ready.configure(**small({"max_epochs": 5}, sweep={"seeds": [0, 1, 2]}, compute={"runs_per_job": 3}))
    ready.run("--profile", "slurm", *targets(ready))
    assert ready.train_log().count("Resumed from epoch 5") == 2  # finished: measured again, not trained
    assert {name: ready.bits()[name] for name in before} == before
    assert len(ready.bits()) > len(before)


def test_two_tasks_train_one_model(ready, tmp_path):
    """As a GPU in each of two nodes would: a process in each task, one model, that of two processes without Slurm."""
    both = {"device": "cpu", "processes": 2}
    ready.configure(**small({"max_epochs": 5}, compute=both))
    alone = copy(ready, tmp_path / "alone")
    alone.run("--cores", "1", *targets(alone))
    ready.site(**{"set-resources": {"train": {"mpi": "srun", "tasks": 2}}})
    ready.run("--profile", "slurm", *targets(ready))
    assert [(job["NumTasks"], job["JobState"]) for job in ready.train_jobs()] == [("2", "COMPLETED")]
    assert "2 processes train together" in ready.train_log()
    for project in (ready, alone):
        assert json.loads((project.folder / targets(project)[0]).read_text())["processes"] == 2
    assert ready.bits() == alone.bits()


def test_a_status_query_that_does_not_work_is_told_before_the_first_job(ready):
    ready.site(**{"slurm-status-command": "sacct"})  # there are no accounts of jobs here
    log = ready.run("--profile", "slurm", *targets(ready), expect=1)
    assert "`sacct` does not tell the state of jobs: Slurm accounting storage is disabled" in log
    assert "slurm-status-command: squeue" in log
    assert not ready.jobs()


def test_status_queries_that_fail_for_a_while_lose_no_job(ready, tmp_path):
    ready.configure(**small({"max_epochs": 5}))
    squeue, broken, asked = (tmp_path / name for name in ("bin/squeue", "broken", "asked"))
    squeue.parent.mkdir()
    squeue.write_text(
        f"""#!/bin/sh
        if [ -e {broken} ]; then echo asked >> {asked}; exit 1; fi
        exec {shutil.which("squeue")} "$@"
        """
    )
    squeue.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(squeue.parent), prepend=":")
        snakemake = ready.start("--profile", "slurm", *targets(ready))
    until(ready.train_jobs)
    broken.touch()
    until(lambda: ready.train_jobs()[0]["JobState"] == "COMPLETED")
    until(lambda: asked.exists() and asked.read_text().count("asked") > 10)  # more than the plugin's own five attempts
    broken.unlink()
    assert snakemake.wait() == 0
    assert len(ready.train_jobs()) == 1
    assert ready.bits()


def test_a_slurm_that_is_started_anew_loses_no_job(ready, undisturbed):
    """Its controller is away for a while in mid-training."""
    snakemake = ready.start("--profile", "slurm", *targets(ready))
    until(training_for_a_while(ready))
    controller = Path(os.environ.get("SLURM_TEST_DIR", "/tmp/slurm-test")) / "run/slurmctld.pid"
    os.kill(int(controller.read_text()), signal.SIGTERM)
    time.sleep(30)
    subprocess.run(["/usr/sbin/slurmctld"], check=True, capture_output=True, cwd="/")
    assert snakemake.wait() == 0
    assert len(ready.train_jobs()) == 1
    assert ready.bits() == undisturbed

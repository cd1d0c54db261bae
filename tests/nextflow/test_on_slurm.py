"""`nextflow run . -profile slurm` on a real Slurm: the demo, and what clusters do to jobs."""

import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from pipelines import BIN, ROOT, Pipeline

from ldvae import results as layout

pytestmark = [pytest.mark.nextflow, pytest.mark.cluster, pytest.mark.usefixtures("slurm")]

SITE = """
process.queue = 'cpu'
process.resourceLimits = [memory: 7.GB, time: 1.h]
executor.pollInterval = '2 sec'
executor.queueStatInterval = '4 sec'
executor.exitReadTimeout = '30 sec'
"""  # what a user of this cluster writes, and less patience
ALONE = """
include { TRAIN } from '%s/workflow/processes/train'

workflow {
    compute = [device: 'cpu', checkpoint_minutes: 0.02]
    TRAIN(channel.of([[id: 'tiny', run: 'mine'], file("${projectDir}/counts.h5ad"), compute, '%s']))
}
"""
LONG = "--seed 1 --max-epochs 1000 --batch-size 16 --no-early-stopping"  # a quarter of a minute on an idle CPU
SURVIVES = f"includeConfig '{ROOT}/nextflow.config'\n"  # what to do about killed jobs


@pytest.fixture(scope="session")
def slurm():
    """A Slurm that runs; what was not running before is ended afterwards."""
    if os.geteuid() != 0 or not (shutil.which("sbatch") or shutil.which("apt-get")):
        message = "needs root, and Slurm or apt-get"
        pytest.fail(message) if "CI" in os.environ else pytest.skip(message)
    tools = ROOT / "tests" / "cluster"
    up = subprocess.run([tools / "slurm-up"], timeout=600, capture_output=True, text=True, check=True)
    yield
    if "already up" not in up.stdout:
        subprocess.run([tools / "slurm-down"], check=True, timeout=120)


@pytest.fixture
def training(pipeline) -> Pipeline:
    """A pipeline that trains one model on small counts, and nothing else."""
    folder = pipeline.folder
    simulate = ["simulate", "--output", layout.FILTERED.at(folder / "tiny"), "--n-obs", "300", "--n-vars", "120"]
    for command in (simulate, ["setup", "--results", folder / "tiny", "--genes", "all"]):
        subprocess.run([BIN / "ldvae", *command], check=True)
    shutil.copy(layout.COUNTS.at(folder / "tiny"), folder / "counts.h5ad")
    return pipeline


def job(number: str) -> dict[str, str]:
    """Slurm's record of a job."""
    text = subprocess.run(["scontrol", "-o", "show", "job", number], capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"(\w+)=(\S*)", text))


def test_the_demo_reaches_its_report_and_training_alone_gets_a_gpu(pipeline):
    pipeline.site = SITE
    done = pipeline.run("-profile", "slurm,test")
    assert done.code == 0, done.text
    assert (pipeline.folder / "results" / "pbmc68k" / "report.html").stat().st_size > 100_000
    jobs = {row["process"].removeprefix("LDVAE:") + row["tag"]: row for row in done.trace}
    records = {name: job(row["native_id"]) for name, row in jobs.items() if not name.startswith(("PLAN", "INDEX"))}
    assert len(records) == 10
    asked = {name: (record["Partition"], record.get("TresPerNode", "")) for name, record in records.items()}
    training = {name for name in asked if name.startswith("TRAIN")}
    assert len(training) == 3
    assert {asked[name] for name in training} == {("gpu", "gres:gpu:1")}
    assert {asked[name] for name in asked.keys() - training} == {("cpu", "")}
    logs = [(Path(jobs[name]["workdir"]) / ".command.err").read_text() for name in training]
    assert all("CUDA_VISIBLE_DEVICES" in log for log in logs)  # granted; these GPUs are not real


def test_a_cancelled_and_then_preempted_training_ends_in_the_same_bits(training):
    folder = training.folder
    alone = folder / "tiny" / "runs" / "alone"
    command = [BIN / "ldvae", "train", "--results", folder / "tiny", "--run", "alone", *LONG.split()]
    subprocess.run(command, check=True)

    (folder / "main.nf").write_text(ALONE % (ROOT, LONG))
    training.site = SURVIVES + SITE
    finished = []
    thread = threading.Thread(
        target=lambda: finished.append(training.run("-profile", "slurm", script=folder / "main.nf"))
    )
    thread.start()
    subprocess.run(["scancel", at_work(folder, attempt=1)], check=True)
    at_work(folder, attempt=2)
    urgent = ["sbatch", "-p", "urgent", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3"]
    subprocess.run(urgent, check=True, cwd="/", capture_output=True)
    thread.join()
    done = finished[0]
    assert done.code == 0, done.text
    assert [(row["attempt"], row["status"], row["exit"]) for row in done.trace] == [
        ("1", "FAILED", "143"), ("2", "FAILED", "143"), ("3", "COMPLETED", "0")
    ]  # fmt: skip
    last = Path(done.trace[-1]["workdir"])
    assert len({row["workdir"] for row in done.trace}) == 3
    assert "Resumed from epoch" in (last / ".command.err").read_text()
    model = "model/model.safetensors"
    assert (last / "tiny/runs/mine" / model).read_bytes() == (alone / model).read_bytes()
    assert not list((folder / "work" / "checkpoints").glob("*/*/*"))


def test_two_tasks_train_one_model(training):
    """As a GPU in each of two nodes would: a process in each task, one model, that of two processes without Slurm."""
    folder, short = training.folder, "--seed 1 --max-epochs 5"
    both = ["--device", "cpu", "--processes", "2"]
    command = [BIN / "ldvae", "train", "--results", folder / "tiny", "--run", "alone", *both, *short.split()]
    subprocess.run(command, check=True)
    (folder / "main.nf").write_text((ALONE % (ROOT, short)).replace("device: 'cpu'", "device: 'cpu', processes: 2"))
    tasks = "clusterOptions = '--ntasks=2' ; ext.launcher = { \"srun --ntasks 2 --cpus-per-task ${task.cpus}\" }"
    training.site = SURVIVES + SITE + f"process {{ withName: TRAIN {{ {tasks} }} }}"
    done = training.run("-profile", "slurm", script=folder / "main.nf")
    assert done.code == 0, done.text
    (row,) = done.trace
    assert job(row["native_id"])["NumTasks"] == "2"
    where = Path(row["workdir"])
    assert "2 processes train together" in (where / ".command.err").read_text()
    model = "model/model.safetensors"
    assert (where / "tiny/runs/mine" / model).read_bytes() == (folder / "tiny/runs/alone" / model).read_bytes()


def at_work(folder: Path, attempt: int, seconds: float = 600) -> str:
    """Wait until an attempt of the training has written a checkpoint; the id of its job."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        logs = sorted(folder.glob("work/??/*/.command.err"), key=lambda path: path.stat().st_ctime)
        if len(logs) == attempt and "Checkpoint at epoch" in logs[-1].read_text():
            queue = ["squeue", "-h", "-o", "%i %Z", "-t", "running"]
            lines = subprocess.run(queue, capture_output=True, text=True, check=True).stdout.splitlines()
            for number, where in (line.split(" ", 1) for line in lines):
                if Path(where) == logs[-1].parent:
                    return number
        time.sleep(0.2)
    raise AssertionError("waited in vain")


def test_a_job_out_of_memory_succeeds_with_more(training):
    (training.folder / "main.nf").write_text(ALONE % (ROOT, "--max-epochs 200 --no-early-stopping"))
    training.site = SURVIVES + SITE + "process { withName: TRAIN { memory = { 300.MB * 4 ** (task.attempt - 1) } } }"
    done = training.run("-profile", "slurm", script=training.folder / "main.nf")
    assert done.code == 0, done.text
    assert [(row["attempt"], row["status"]) for row in done.trace] == [("1", "FAILED"), ("2", "COMPLETED")]
    assert [job(row["native_id"])["MinMemoryNode"] for row in done.trace] == ["300M", "1200M"]


def test_a_job_that_the_scheduler_refuses_ends_the_pipeline_and_says_why(training):
    (training.folder / "main.nf").write_text(ALONE % (ROOT, "--max-epochs 2"))
    training.site = SURVIVES + SITE + "process { withName: TRAIN { memory = 100.GB ; resourceLimits = [:] } }"
    done = training.run("-profile", "slurm", script=training.folder / "main.nf")
    assert done.code != 0
    assert "Requested node configuration is not available" in done.text


def test_a_job_that_can_never_start_is_told_while_it_waits_with_the_line_to_change(pipeline):
    """It asks for longer than its partition allows, which Slurm takes and leaves pending."""
    pipeline.configure(datasets={"one": {"input": "demo:pbmc68k"}}, sweep={"seeds": [0]})
    pipeline.quick()
    pipeline.site = SITE + "process { resourceLimits = [:] ; withName: 'LDVAE:QC' { time = 20.d } }"
    finished = []
    arguments = ("--config", "config.yaml", "-profile", "slurm")
    thread = threading.Thread(target=lambda: finished.append(pipeline.run(*arguments)))
    thread.start()
    log, end, said = pipeline.folder / ".nextflow.log", time.monotonic() + 900, ""
    while "waits for PartitionTimeLimit" not in said and time.monotonic() < end:
        time.sleep(0.5)
        said = log.read_text() if log.exists() else ""
    numbers = re.findall(r"Slurm job (\d+) \(nf-LDVAE_QC", said)
    for number in numbers:
        subprocess.run(["scontrol", "update", f"JobId={number}", "TimeLimit=10"], check=True)
    thread.join()
    assert len(numbers) == 1
    assert finished[0].code == 0
    assert "--max_time" in finished[0].text

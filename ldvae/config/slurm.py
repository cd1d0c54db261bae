"""What a Slurm allows: the limits of its partitions, and jobs that wait for what never comes."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

PROFILE = "slurm/config.v9+.yaml or profiles/default/config.yaml"

# Reasons of pending jobs that do not pass by waiting, and what to do. Slurm's manual of squeue lists all.
REASONS = {
    r"PartitionTimeLimit|\w*MaxWall\w*": "it asks for more time than is allowed: lower `compute: max_runtime` "
    "(minutes) in the config",
    r"PartitionNodeLimit|BadConstraints|\w*Max(Mem|TRES|GRES|Cpu|Node)\w*Per(Job|Node)\w*": "no node has what it "
    "asks for: lower `compute: max_mem_mb` or `compute: threads` in the config, or correct gpu, gpu_model, gres or "
    f"constraint in {PROFILE}",
    r"InvalidAccount|AccountNotAllowed": f"correct slurm_account in {PROFILE}",
    r"InvalidQOS|QOSNotAllowed": f"correct qos in {PROFILE}",
    r"PartitionDown|PartitionInactive": f"the partition is closed: name another slurm_partition in {PROFILE}",
    r"JobHeldAdmin|.*requeued held": "it is held: `scontrol release` with its number, or ask your administrators",
}


class Partition(NamedTuple):
    """What one job can get in a partition at most."""

    name: str
    minutes: float  # infinite where there is no limit
    mem_mb: int
    cpus: int
    gpus: int
    is_default: bool


class Request(NamedTuple):
    """What a job asks for; None where it is not known yet."""

    rule: str
    partition: str | None
    minutes: float | None
    mem_mb: float | None
    threads: int | None
    gpus: int


def partitions() -> dict[str, Partition]:
    """Partitions by name, as `sinfo` tells; none where it cannot be asked."""
    if shutil.which("sinfo") is None:
        return {}
    command = ["sinfo", "--noheader", "--exact", "--format", "%P|%l|%m|%c|%G"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return {}
    return read_partitions(done.stdout) if done.returncode == 0 else {}


def read_partitions(text: str) -> dict[str, Partition]:
    """Partitions by name, from lines `name|time limit|MB of a node|CPUs of a node|generic resources of a node`.

    Examples
    --------
    >>> read_partitions("gpu*|1:00:00|8000|4|gpu:a100:2(S:0-1)")["gpu"]
    Partition(name='gpu', minutes=60.0, mem_mb=8000, cpus=4, gpus=2, is_default=True)
    """
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        name, limit, mem_mb, cpus, gres = line.split("|")
        gpus = sum(int(n or 1) for n in re.findall(r"gpu(?::[A-Za-z_][^:,(]*)?(?::(\d+))?", gres))
        one = Partition(name.rstrip("*"), minutes(limit), _number(mem_mb), _number(cpus), gpus, name.endswith("*"))
        known = found.get(one.name, one)
        found[one.name] = one._replace(
            mem_mb=max(one.mem_mb, known.mem_mb), cpus=max(one.cpus, known.cpus), gpus=max(one.gpus, known.gpus)
        )
    return found


def _number(text: str) -> int:
    return int(re.sub(r"\D.*", "", text) or 0)


def minutes(limit: str) -> float:
    """Minutes of a time limit as Slurm writes it.

    Examples
    --------
    >>> [minutes(limit) for limit in ("30:00", "1:00:00", "2-12:00:00", "infinite")]
    [30.0, 60.0, 3600.0, inf]
    """
    days, _, time = limit.rpartition("-")
    parts = time.split(":")
    if not all(part.isdigit() for part in parts):
        return math.inf
    hours, mins, seconds = ([0, 0, 0, *map(int, parts)])[-3:]
    return 1440 * int(days or 0) + 60 * hours + mins + seconds / 60


def usable(name: str | None, known: Mapping[str, Partition]) -> list[Partition]:
    """The partitions that a job may be put into: those that are named (with commas), or the default one."""
    names = name.split(",") if name else [one.name for one in known.values() if one.is_default]
    return [known[one] for one in names if one in known]


def problems(requests: Iterable[Request], known: Mapping[str, Partition]) -> list[str]:
    """What is asked for and cannot be had, with the line to change; each problem of a rule once."""
    found = [line for request in requests for line in _problems(request, known)]
    return list(dict.fromkeys(found))


def _problems(request: Request, known: Mapping[str, Partition]) -> Iterable[str]:
    places = usable(request.partition, known)
    of_rule = f"`set-resources: {{{request.rule}: …}}` of {PROFILE}"
    if request.partition and not places:
        yield (
            f"{request.rule}: there is no partition {request.partition!r}; there are {', '.join(known)}. Correct "
            f"slurm_partition in {PROFILE}."
        )
    if not places:
        return
    where = f"partition {' or '.join(one.name for one in places)}"
    if request.gpus > (gpus := max(one.gpus for one in places)):
        have = [one.name for one in known.values() if one.gpus >= request.gpus]
        other = f"write slurm_partition: {have[0]} into {of_rule}, or " if have else ""
        yield (
            f"{request.rule} asks for {request.gpus} GPU, and a node of {where} has {gpus}: {other}"
            "`compute: {device: cpu}` in the config."
        )
    for what, asked, most, line in (
        ("minutes", request.minutes, max(one.minutes for one in places), "`compute: max_runtime` in the config"),
        ("MB of memory", request.mem_mb, max(one.mem_mb for one in places), "`compute: max_mem_mb` in the config"),
        ("CPUs", request.threads, max(one.cpus for one in places), "`compute: threads` in the config"),
    ):
        if asked is not None and asked > most:
            yield (
                f"{request.rule} asks for {asked:g} {what}, and {where} has at most {most:g}: lower {line} or in "
                f"{of_rule}, or name another slurm_partition there."
            )


class Pending(NamedTuple):
    """A job that waits, and Slurm's reason."""

    job: str
    reason: str
    partition: str
    time_limit: str
    comment: str
    folder: str


def pending() -> list[Pending]:
    """My jobs that wait; none where `squeue` does not answer."""
    command = ["squeue", "--me", "--noheader", "--states", "PENDING", "--format", "%i|%r|%P|%l|%k|%Z"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = (line.split("|") for line in done.stdout.splitlines())
    return [Pending(*parts) for parts in lines if len(parts) == len(Pending._fields)]


def never_start(jobs: Sequence[Pending]) -> dict[str, str]:
    """What to say of jobs that wait for what never comes, by job.

    Examples
    --------
    >>> job = Pending("7", "PartitionTimeLimit", "gpu", "2:00:00", "rule_train_wildcards_kang_k10-s0-3fa9c1", "/work")
    >>> print(never_start([job])["7"])  # doctest: +ELLIPSIS
    Slurm job 7 (train kang k10-s0-3fa9c1) waits for PartitionTimeLimit, which does not pass; partition gpu, ...
    """
    found = {}
    for job in jobs:
        advice = next((advice for reason, advice in REASONS.items() if re.fullmatch(reason, job.reason)), None)
        if advice:
            name = job.comment.removeprefix("rule_").replace("_wildcards_", " ").replace("_", " ")
            found[job.job] = (
                f"Slurm job {job.job} ({name}) waits for {job.reason}, which does not pass; partition {job.partition}, "
                f"{job.time_limit}: {advice}. Then Ctrl-C, and the same command again."
            )
    return found

"""Kill `ldvae train` at random moments, over and over: it must always end in the files of an undisturbed run.

    python tests/cluster/kill_train.py FOLDER [--kills 100] [--seed 0] [--epochs 60] [--new-processes]

Prints one JSON line for each attempt, then a summary; exits 1 at the first difference. Each attempt is a fork of a
process that has trained before, so that the moments fall on the work, not on imports and compilation; or a process of
its own, as on a cluster, whose memory is never laid out as that of the attempt before.
"""

import argparse
import hashlib
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}  # a process with threads must not fork

import numpy as np
from anndata import AnnData
from scipy import sparse

from ldvae import cli
from ldvae import results as layout

INTERVAL_S = 0.3
OUTPUTS = [Path(file.path).name for file in layout.outputs("train")]
LDVAE = Path(sys.executable).parent / "ldvae"


def write_counts(path: Path) -> None:
    """Counts with three programs, as `ldvae setup` leaves them."""
    random = np.random.default_rng(0)
    scores, loadings = random.normal(size=(600, 3)), random.normal(0, 0.7, (3, 200))
    rate = np.exp(scores @ loadings + random.normal(0, 0.3, (600, 1)) - 1)
    adata = AnnData(sparse.csr_matrix(random.poisson(rate).astype(np.float32)))
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    adata.obs["split"] = random.choice(["train", "validation", "test"], adata.n_obs, p=[0.8, 0.1, 0.1])
    adata.uns["ldvae_setup"] = {"batch_key": "", "labels_key": "", "size_factor_key": ""}
    adata.uns["ldvae_setup"] |= {"categorical_covariate_keys": [], "continuous_covariate_keys": []}
    path.parent.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(path)


def command(counts: Path, run: Path, epochs: int = 60) -> list[str]:
    """Arguments of `ldvae train` that puts its outputs into a folder."""
    results = layout.COUNTS.results_of(counts)
    place = results / "runs" / hashlib.sha256(str(run).encode()).hexdigest()[:12]
    run.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(run.absolute())
    options = ["--max-epochs", str(epochs), "--n-latent", "3", "--n-hidden", "32", "--batch-size", "64"]
    checkpoint = ["--checkpoint", str(run / "checkpoint"), "--checkpoint-minutes", str(INTERVAL_S / 60)]
    return ["train", "--results", str(results), "--run", place.name, *checkpoint, *options]


def start(arguments: list[str], log: Path, new_process: bool) -> int:
    """Start a child that runs `ldvae`, with its messages in a file; its process id."""
    if new_process:
        to_log = (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        return os.posix_spawn(LDVAE, [LDVAE, *arguments], os.environ, file_actions=[to_log])
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        code = cli.main(arguments)
    except SystemExit as leaving:
        code = leaving.code
    finally:
        sys.stderr.flush()
        os._exit(code)


def stage(log: str) -> str:
    """How far an attempt has come."""
    begun = re.findall(r"epoch (\d+)/(\d+)", log)
    if begun and begun[-1][0] == begun[-1][1]:
        return "evaluating"
    return "training" if "Checkpoint at" in log else "starting"


def attempt(
    arguments: list[str], run: Path, kill_after: float | None, how: signal.Signals, new_process: bool
) -> dict[str, object]:
    """One attempt, killed after some seconds unless it ended before; what became of it."""
    log, checkpoint = run / "log", run / "checkpoint" / "checkpoint"
    begun = time.time()
    child = start(arguments, log, new_process)
    done, status, killed_at = 0, 0, None
    while not done:
        time.sleep(0.002)
        now = time.time()
        if killed_at is None and kill_after is not None and now > begun + kill_after:
            age = now - max(begun, checkpoint.stat().st_mtime if checkpoint.exists() else 0)
            os.kill(child, how)
            killed_at = now
        done, status = os.waitpid(child, os.WNOHANG)
    text = log.read_text()
    found: dict[str, object] = {"exit": os.waitstatus_to_exitcode(status), "seconds": round(time.time() - begun, 2)}
    found["resumed"] = (re.findall(r"Resumed from (epoch \d+, step \d+)", text) or [None])[0]
    found["saved"] = (re.findall(r"Checkpoint at (epoch \d+, step \d+)", text) or [None])[-1]
    found["refused"] = text.count("Cannot resume")
    if killed_at is not None:
        found |= {"signal": how.name, "after": round(kill_after, 2), "left_after": round(time.time() - killed_at, 2)}
        found["stage"] = stage(text)
        if how == signal.SIGKILL and found["stage"] == "training":
            found["unsaved_s"] = round(age, 2)
    return found


def contents(run: Path) -> dict[str, bytes]:
    """Every output, as bytes, but for what tells the time."""
    files = [run / name for name in ("history.csv", "ppc.tsv", "model/model.safetensors")]
    found = {str(path.relative_to(run)): path.read_bytes() for path in files}
    with np.load(run / "factors.npz") as arrays:  # a zip file tells the time
        found |= {f"factors.npz/{name}": arrays[name].tobytes() for name in arrays.files}
    metrics = json.loads((run / "metrics.json").read_text())
    timeless = {
        name: value
        for name, value in metrics.items()
        if name not in ("run", "wall_s", "cells_per_s", "peak_memory_mb", "date")
    }
    return found | {"metrics.json": json.dumps(timeless).encode()}


def clear(run: Path) -> None:
    """Remove the outputs, as Snakemake does before it runs a failed job again; the checkpoint stays."""
    for name in OUTPUTS:
        path = run / name
        if path.is_dir():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


def main() -> int:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--new-processes", action="store_true")
    given = parser.parse_args()
    moments = random.Random(given.seed)
    warm, whole, run = (given.folder / name for name in ("warm", "undisturbed", "killed"))
    for folder in (warm, whole, run):
        folder.mkdir(parents=True, exist_ok=True)
    counts = layout.COUNTS.at(given.folder)
    write_counts(counts)
    if cli.main(command(counts, warm, given.epochs)) != 0:
        return 1
    length = attempt(command(counts, whole, given.epochs), whole, None, signal.SIGTERM, given.new_processes)
    if length["exit"] != 0:
        print((whole / "log").read_text(), file=sys.stderr)
        return 1
    expected = contents(whole)
    kills, finished, seen = 0, 0, []
    while kills < given.kills or not (run / "metrics.json").exists():
        clear(run)
        how = moments.choice([signal.SIGKILL, signal.SIGTERM])
        when = moments.uniform(0, float(length["seconds"])) if kills < given.kills else None
        found = attempt(command(counts, run, given.epochs), run, when, how, given.new_processes)
        print(json.dumps(found), flush=True)
        seen.append(found)
        kills += "signal" in found and found["exit"] != 0
        # A signal that comes before there is a handler ends the process too, by itself.
        allowed = {"SIGKILL": (0, -9), "SIGTERM": (0, 143, -15)}.get(str(found.get("signal")), (0,))
        if found["exit"] not in allowed or found["refused"]:
            print((run / "log").read_text(), file=sys.stderr)
            return 1
        if (run / "metrics.json").exists():  # written last
            finished += 1
            differing = [name for name, value in contents(run).items() if value != expected[name]]
            if differing or (found["exit"] == 0 and (run / "checkpoint").exists()):
                print(f"differing: {differing}", file=sys.stderr)
                return 1
    killed = [found for found in seen if "signal" in found and found["exit"] != 0]
    polite = [found["left_after"] for found in killed if found["exit"] == 143]
    summary = {
        "kills": dict(Counter(str(found["signal"]) for found in killed)),
        "stages": dict(Counter(str(found["stage"]) for found in killed)),
        "resumed": sum(found["resumed"] is not None for found in seen),
        "finished_in_the_same_bits": finished,
        "undisturbed_s": length["seconds"],
        "most_unsaved_s": max((found["unsaved_s"] for found in killed if "unsaved_s" in found), default=None),
        "slowest_exit_after_sigterm_s": max(polite, default=None),
    }
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the steps need by the size of their input, measured, beside what workflow/resources.yaml asks for.

    python tests/benchmarks/resources.py [FOLDER] [--cells 1000 3000 9000] [--genes 2000]

Simulates datasets of several sizes, runs the workflow on them one job at a time, and prints for each job the peak
memory (of the process, from the kernel: Snakemake's own benchmark looks too seldom) and the CPU time, then for each
step the straight lines through them. Epochs are few, since training time is cells times epochs, of which the default
has at most 3.2 million: its line is scaled to that. With a FOLDER that holds finished runs, prints their table again.
"""

import argparse
import ast
import csv
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).parents[2]
EPOCHS = 8
WRAPPER = """#!{python}
import json, os, sys
child = os.fork()
if not child:
    os.execv({ldvae!r}, [{ldvae!r}, *sys.argv[1:]])
_, status, used = os.wait4(child, 0)
with open({table!r}, "a") as table:
    text = {{"arguments": sys.argv[1:], "mb": used.ru_maxrss / 1024, "s": used.ru_utime + used.ru_stime}}
    print(json.dumps(text), file=table)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measure(folder: Path, cells: list[int], genes: int) -> None:
    """Run the workflow on simulated datasets, with every `ldvae` watched."""
    ldvae = Path(sys.executable).parent / "ldvae"
    datasets = {}
    for n_obs in cells:
        datasets[f"n{n_obs}"] = {"input": f"n{n_obs}.h5ad"}
        output = folder / f"n{n_obs}.h5ad"
        command = [ldvae, "simulate", "--output", output, "--n-obs", str(n_obs), "--n-vars", str(genes)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    config = {
        "datasets": datasets,
        "setup": {"genes": "all", "batch_key": "batch"},
        "sweep": {"seeds": [0, 1, 2, 3]},
        "train": {"max_epochs": EPOCHS},
        "de": {"contrasts": [{"column": "identity"}]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    wrapper = folder / "bin" / "ldvae"
    wrapper.parent.mkdir(exist_ok=True)
    wrapper.write_text(WRAPPER.format(python=sys.executable, ldvae=str(ldvae), table=str(folder / "used.jsonl")))
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    path = os.pathsep.join([str(wrapper.parent), str(ldvae.parent), os.environ["PATH"]])
    snakemake = ["snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder, "--cores", "1", "--quiet"]
    subprocess.run(
        [*snakemake, "--configfile", folder / "config.yaml", "--benchmark-extended", "--workflow-profile", "none"],
        check=True,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
    )


def inputs(folder: Path) -> dict[tuple[str, str], float]:
    """MB of the input files by step and dataset, as Snakemake's rules see them."""
    found = {}
    for path in folder.glob("benchmarks/*/**/*.tsv"):
        with path.open() as file:
            row = next(csv.DictReader(file, delimiter="\t"))
        dataset = json.loads(row["wildcards"].replace("'", '"'))["dataset"]
        found[row["rule_name"], dataset] = sum(ast.literal_eval(row["input_size_mb"]).values())
    return found


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 3000, 9000])
    parser.add_argument("--genes", type=int, default=2000)
    given = parser.parse_args()
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="ldvae-resources-"))).absolute()
    if not (folder / "used.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        measure(folder, given.cells, given.genes)
    sizes, asked = inputs(folder), yaml.safe_load((ROOT / "workflow/resources.yaml").read_text())
    used = defaultdict(list)
    for line in (folder / "used.jsonl").read_text().splitlines():
        job = json.loads(line)
        step = job["arguments"][0]
        for (rule, dataset), mb in sizes.items():
            if rule == step and f"/{dataset}/" in " ".join(job["arguments"]):
                used[step].append((mb, job["mb"], job["s"]))
    print("step      input MB   peak MB  asked MB    CPU s  asked s")
    for step, rows in used.items():
        for mb, memory, seconds in sorted(rows):
            want, time = (base + per_mb * mb for base, per_mb in (asked[step]["mem_mb"], asked[step]["minutes"]))
            print(f"{step:9} {mb:8.1f} {memory:9.0f} {want:9.0f} {seconds:8.1f} {60 * time:8.0f}")
    print("\nstep      peak MB = base + slope x input MB    CPU s = base + slope x input MB    least asked / used")
    for step, rows in used.items():
        mb, memory, seconds = np.array(rows).T
        lines = [np.polynomial.Polynomial.fit(mb, y, 1).convert().coef for y in (memory, seconds)]
        (b, s), (tb, ts) = [(*line, 0.0)[:2] for line in lines]
        base, per_mb = asked[step]["mem_mb"]
        margin = min((base + per_mb * mb) / memory)
        print(f"{step:9} {b:13.0f} + {s:8.1f} x {' ':12} {tb:11.1f} + {ts:7.2f} x {' ':14} {margin:8.1f}")
    print(f"\n(train: {EPOCHS} epochs; measured in {folder})")


if __name__ == "__main__":
    main()

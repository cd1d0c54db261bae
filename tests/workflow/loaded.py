"""Reads calls of snakemake, a line of JSON each, and writes their exit codes; see `workplace.Loaded`."""

import json
import os
import sys

import anndata  # noqa: F401 (by which headers of inputs are read)
import snakemake.api
import snakemake.cli
import snakemake.workflow

del sys.path[0]  # the folder of this file
for line in sys.stdin:
    arguments, folder, environment, said = json.loads(line)
    if (child := os.fork()) == 0:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for own, name in enumerate((os.devnull, f"{said}/stdout", f"{said}/stderr")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), own)
        sys.argv = ["snakemake", *arguments]
        snakemake.cli.main(arguments)
        sys.exit()
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)

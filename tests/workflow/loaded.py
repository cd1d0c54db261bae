"""Reads calls of snakemake, a line of JSON each, and writes their exit codes; see `workplace.Loaded`."""

import contextlib
import json
import os
import sys

import snakemake.api
import snakemake.cli
import snakemake.workflow
from snakemake.executors import touch

touch.Executor.SLEEPING_TIME = 0.001  # for each job; file systems with coarser times are not tested on
snakemake.cli.get_argument_parser()  # which loads the plugins
with contextlib.suppress(ImportError):  # an environment may lack ldvae, or what reads headers of inputs
    import ldvae.config.frozen
    import ldvae.config.inputs
    import ldvae.io
    import ldvae.results  # noqa: F401

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

"""Errors are told under `--quiet all`, too, which lets Snakemake end without a word."""

import logging
import sys

from snakemake.logging import logger


class ErrorsToStderr(logging.Handler):
    """Prints errors: of the config, of the jobs, and what is said of them at the end."""

    def __init__(self):
        super().__init__(logging.ERROR)

    def emit(self, record):
        logs = ", ".join(getattr(record, "log", None) or [])
        print(record.getMessage() + (f"; see {logs}" if logs else ""), file=sys.stderr, flush=True)


def quiet_about():
    """What --quiet names, in lower case; nothing where a version of Snakemake does not tell (this is undocumented)."""
    named = getattr(getattr(workflow, "output_settings", None), "quiet", None) or set()
    return {str(one).lower() for one in named}


if workflow.is_main_process and "all" in quiet_about():
    if "ErrorsToStderr" not in [type(handler).__name__ for handler in logger.handlers]:
        logger.addHandler(ErrorsToStderr())

"""The command line: `ldvae <verb>`, one verb for each module of `ldvae.steps`, with flags from its signature."""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError
from pydantic import ValidationError

from ldvae import results as layout
from ldvae.config import Options, is_name
from ldvae.config.frozen import RUN
from ldvae.errors import InputError, suggestion
from ldvae.provenance import versions
from ldvae.steps import VERBS

logger = logging.getLogger("ldvae")

VERSIONS_OF = ("anndata", "numba", "numpy", "scanpy", "scipy", "torch")
FOR_ENGINES = """Of every verb, for workflow engines: --stub writes small valid outputs at once and computes nothing;
--versions-yml PATH writes the versions of ldvae and of what it uses."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 2 when the user's input is at fault, 1 when we are."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verb = arguments[0] if arguments else "--help"
    logging.basicConfig(
        stream=sys.stderr,
        # Of several processes that train together the first reports, the others warn.
        level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    logging.getLogger().handlers[0].addFilter(_each_warning_once())
    try:
        _prepare_environment(arguments)
        with _terminated_in_order():
            _run(verb, arguments)
    except (Exception, KeyboardInterrupt) as error:
        if told := _not_ours(error):
            message, code = told
            print(f"ldvae {arguments[0]}: {message}", file=sys.stderr)
        else:
            message, code = f"a mistake of ldvae: {type(error).__name__}: {error}", 1
            logger.exception(
                "ldvae %s failed; this is a mistake of ldvae, please report it with the lines below.", verb
            )
        _write_failure(arguments, message, code)
        return code
    return 0 if arguments else 2


@contextmanager
def _terminated_in_order() -> Iterator[None]:
    """Let SIGTERM inside the block end the process as an error does, so that no temporary file stays."""

    def leave(number: int, _: object) -> None:
        for worker in multiprocessing.active_children():  # the end would wait for them
            worker.kill()
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _each_warning_once() -> Callable[[logging.LogRecord], bool]:
    """A filter that drops a warning that was shown already: `check` and `qc` read headers, then counts."""
    shown: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if record.levelno != logging.WARNING or message not in shown:
            shown.add(message)
            return True
        return False

    return is_new


def _not_ours(error: BaseException) -> tuple[str, int] | None:
    """Message and exit code of an error of the user or the system; None for a bug of ldvae."""
    match error:
        case InputError():
            return str(error), 2
        case ModuleNotFoundError(name=str(name)) if not name.startswith("ldvae"):
            return f"needs {name}, which is not installed: python -m pip install 'ldvae[workflow]'.", 2
        case FileNotFoundError() | PermissionError() | IsADirectoryError() | NotADirectoryError():
            return f"{error.filename}: {error.strerror}.", 2
        case OSError():
            return f"{error.filename or 'input or output'}: {error.strerror or error}.", 1
        case MemoryError():
            return f"out of memory ({error}); give the job more.", 1
        case BrokenExecutor():
            return (
                "one of its processes was killed, most likely for want of memory: give the job more of it, or fewer "
                "threads (--threads), each of which has its own.",
                1,
            )
        case KeyboardInterrupt():
            return "interrupted.", 130
    return None


def _failure_file(arguments: Sequence[str]) -> Path | None:
    """Path of the record of a command's failure, if its results folder exists."""
    given = dict(itertools.pairwise(arguments))
    results = Path(given.get("--results", ""))
    name = given.get("--run") or given.get("--name")
    if arguments[0] == "index" or "--results" not in given or not results.is_dir():
        return None
    return layout.failure_file(results, arguments[0], name) if name is None or is_name(name) else None


def _write_failure(arguments: Sequence[str], message: str, code: int) -> None:
    """Record why a command failed, for the index over all datasets and for further attempts."""
    path = _failure_file(arguments)
    if path is None or code not in (1, 2) or not os.access(path.parents[1], os.W_OK):
        return
    failure = {"verb": arguments[0], "command": list(arguments), "message": message, "code": code}
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(failure | {"run": os.environ.get(RUN, "")}, indent=2) + "\n")
    except OSError as error:  # such as a full disk, which may be the failure itself
        logger.warning("%s cannot be written: %s", path, error)


def _refuse_again(arguments: Sequence[str]) -> None:
    """Raise a recorded user error of the same workflow run at once: a retry with more memory does not help."""
    path = _failure_file(arguments)
    if path is None or not path.exists():
        return
    failure = json.loads(path.read_text())
    same_run = failure["run"] and failure["run"] == os.environ.get(RUN)
    if same_run and failure["code"] == 2 and failure["command"] == list(arguments):
        raise InputError(failure["message"])


def command_line() -> App:
    """All verbs; the module of one is imported when it is called."""
    Parameter(name="*")(Options)  # the options of a section are flags of their own, not --config.min-genes
    app = App(
        name="ldvae",
        help="Raw single-cell counts to gene programs. The verbs in the order of the workflow:",
        help_epilogue=FOR_ENGINES,
        help_format="plaintext",
        version=lambda: f"ldvae {metadata.version('ldvae')}",
        version_flags=["--version", "-V"],
        default_parameter=Parameter(
            allow_repeating=True, consume_multiple=True, negative_iterable=(), negative_none=()
        ),
    )
    for order, (verb, summary) in enumerate(VERBS.items()):
        app.command(f"ldvae.steps.{verb}:{verb}", name=verb, help=summary, sort_key=order)
    return app


def _run(verb: str, arguments: Sequence[str]) -> None:
    """Parse the arguments of a step and call it."""
    rest, stub, versions_yml = _for_engines(arguments)
    try:
        step, bound, _ = command_line().parse_args(rest or ["--help"], exit_on_error=False, print_error=False)
    except UnknownCommandError as error:
        raise InputError(f"there is no verb {verb!r}.{suggestion(verb, VERBS)}") from error
    except CycloptsError as error:
        if isinstance(error.__cause__, ValidationError):
            raise InputError("\n".join(_mistaken_flags(error.__cause__))) from error
        raise InputError(f"{_one_line(error)} See `ldvae {verb} --help`.") from error
    if verb not in VERBS or inspect.ismethod(step):  # cyclopts' own: --help, --version
        step(*bound.args, **bound.kwargs)
        return
    bound.apply_defaults()
    values = dict(bound.arguments)
    for option in ("name", "run"):
        if values.get(option) is not None and not is_name(values[option]):
            raise InputError(
                f"--{option}: a name is made of letters, digits, '_', '-' and '.', found {values[option]!r}."
            )
    if stub:
        _write_stubs(verb, values, " ".join(rest))
    elif values.get("processes", 1) > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        from ldvae.distributed import launch  # imports torch

        sys.exit(launch(values["processes"], "ldvae", arguments))
    else:
        _refuse_again(arguments)
        for path, _ in _outputs(verb, values):
            layout.require_writable(path.parent)
        if "results" in values:
            layout.require_inputs(verb, values["results"])
        if inspect.signature(step).return_annotation in (None, "None"):  # else it prints
            _log_head(verb, values)
        if text := step(*bound.args, **bound.kwargs):
            print(text)
    if (failed := _failure_file(arguments)) is not None:
        failed.unlink(missing_ok=True)
    if versions_yml:
        Path(versions_yml).write_text(_versions_yml(verb))


def _for_engines(arguments: Sequence[str]) -> tuple[list[str], bool, str | None]:
    """The arguments without --stub and --versions-yml, whether the first was there, and the value of the second."""
    rest, versions_yml = [argument for argument in arguments if argument != "--stub"], None
    if "--versions-yml" in rest:
        at = rest.index("--versions-yml")
        if at + 1 == len(rest):
            raise InputError("--versions-yml requires a path.")
        versions_yml = rest[at + 1]
        del rest[at : at + 2]
    return rest, "--stub" in arguments, versions_yml


def _one_line(error: CycloptsError) -> str:
    text = " ".join(str(error).split())
    return f"{text[0].lower()}{text[1:]}"


def _mistaken_flags(error: ValidationError) -> list[str]:
    """What the options of a section found wrong, each mistake after its flag."""
    lines = [line for found in error.errors() for line in getattr(found.get("ctx", {}).get("error"), "args", ())]
    flagged = (line.partition(":") for line in lines)
    return [f"--{name.replace('_', '-')}:{text}" for name, _, text in flagged]


def _prepare_environment(arguments: Sequence[str]) -> None:
    """Set what libraries read when they are imported: the number of threads, and caches where the job may write."""
    if "--threads" in arguments[:-1]:
        threads = arguments[arguments.index("--threads") + 1]
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
            os.environ[name] = threads
    home = Path.home() / ".cache"
    writable = next((os.access(folder, os.W_OK) for folder in (home, home.parent) if folder.exists()), False)
    if not writable:
        cache = Path(tempfile.gettempdir()) / f"ldvae-cache-{os.getuid()}"
        for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR", "TRITON_CACHE_DIR"):
            os.environ.setdefault(name, str(cache / name.split("_")[0].lower()))


def _log_head(verb: str, values: dict[str, Any]) -> None:
    """First lines of every log: where, with what and on what the step runs."""
    found = ", ".join(f"{name} {version}" for name, version in _versions().items())
    job = next(
        (f", job {os.environ[name]}" for name in ("SLURM_JOB_ID", "LSB_JOBID", "PBS_JOBID") if name in os.environ), ""
    )
    logger.info("ldvae %s on %s%s, %s: %s", verb, socket.gethostname(), job, time.strftime("%Y-%m-%d"), found)
    for name, value in values.items():
        if isinstance(value, Options):
            value = " ".join(f"{option}={chosen}" for option, chosen in value)
        logger.info("  %s: %s", name, value)


def _versions() -> dict[str, str]:
    return versions(("ldvae", *VERSIONS_OF))


def _versions_yml(verb: str) -> str:
    """Versions as nf-core's modules report them, under the name of the process where the engine gives one."""
    lines = [f"    {name}: {version}" for name, version in _versions().items()]
    return "\n".join([f'"{os.environ.get("LDVAE_PROCESS", verb)}":', *lines, ""])


def _outputs(verb: str, values: dict[str, Any]) -> list[tuple[Path, tuple[str, ...]]]:
    """Paths that a verb writes to, each with the files inside where it is a folder."""
    if output := values.get("output"):
        return [(output, ())]
    if "results" not in values:
        return []
    names = {"run": values.get("run") or "run", "projection": values.get("name") or "projection"}
    return [(file.at(values["results"], **names), file.contents) for file in layout.outputs(verb)]


def _write_stubs(verb: str, values: dict[str, Any], command: str) -> None:
    """Write small valid outputs of a verb; those in JSON tell the command."""
    for path, contents in _outputs(verb, values):
        for part in [path / name for name in contents] or [path]:
            _write_stub(part, command)


def _write_stub(path: Path, command: str) -> None:
    """Write the smallest file of the format that the name tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.removesuffix(".gz")
    if name.endswith(".h5ad"):
        import anndata
        import numpy as np

        anndata.AnnData(np.ones((2, 2), dtype=np.float32)).write_h5ad(path)
    elif name.endswith(".npz"):
        import numpy as np

        np.savez(path, stub=np.zeros(1))
    else:
        texts = {
            ".json": json.dumps({"stub": command}) + "\n",
            ".html": "<!doctype html><title>stub</title>\n",
            ".svg": '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>\n',
        }
        text = texts.get(Path(name).suffix, "stub\n").encode()
        if name.endswith(".png"):
            text = bytes.fromhex(
                "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
                "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
            )
        if path.suffix == ".gz":
            import gzip

            text = gzip.compress(text)
        path.write_bytes(text)


if __name__ == "__main__":
    sys.exit(main())

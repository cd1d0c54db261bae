"""The command line: `ldvae <verb>`, one verb for each step, with the flags that the step's signature calls for."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import logging
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from ldvae import config
from ldvae import results as layout
from ldvae.config import Options, coerce
from ldvae.errors import InputError, suggestion
from ldvae.provenance import versions

logger = logging.getLogger("ldvae")

STEPS = ("qc", "setup", "train", "select", "programs", "annotate", "de", "report", "index", "project", "simulate")
VERBS = (*STEPS, "check", "plan", "schema", "migrate", "profile")
VERSIONS_OF = ("anndata", "numba", "numpy", "scanpy", "scipy", "torch")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 2 when the user's input is at fault, 1 when we are."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verb = arguments[0] if arguments else "--help"
    if verb in ("--version", "-V"):
        print(f"ldvae {metadata.version('ldvae')}")
        return 0
    if verb in ("--help", "-h", "help"):
        print(_overview())
        return 0 if arguments else 2
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    try:
        if verb not in VERBS:
            raise InputError(f"there is no verb {verb!r}.{suggestion(verb, VERBS)}")
        _prepare_environment(arguments)
        _run(verb, arguments[1:])
    except InputError as error:
        return _fail(verb, str(error), 2)
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        return _fail(verb, f"{error.filename}: {error.strerror}.", 2)
    except OSError as error:
        return _fail(verb, f"{error.filename or 'input or output'}: {error.strerror or error}.", 1)
    except MemoryError as error:
        return _fail(verb, f"out of memory ({error}); give the job more.", 1)
    except KeyboardInterrupt:
        return _fail(verb, "interrupted.", 130)
    except Exception:
        logger.exception("ldvae %s failed; this is a mistake of ldvae, please report it with the lines below.", verb)
        return 1
    return 0


def _fail(verb: str, message: str, code: int) -> int:
    print(f"ldvae {verb}: {message}", file=sys.stderr)
    return code


def _overview() -> str:
    lines = [
        "usage: ldvae <verb> [flags]      ldvae <verb> --help      ldvae --version",
        "",
        "verbs, in the order of the workflow:",
    ]
    lines += [f"  {verb:<10}{(inspect.getdoc(_outline(verb)) or '').splitlines()[0]}" for verb in VERBS]
    return "\n".join(lines)


def _outline(verb: str) -> Callable[..., Any]:
    """The signature and docstring of a step without its body: read, not imported, since some import torch or scanpy."""
    source = Path(__file__).with_name("steps") / f"{verb}.py"
    function = next(
        node for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef) and node.name == verb
    )
    function.body = function.body[:1]
    code = compile(ast.Module([function], []), source, "exec", flags=annotations.compiler_flag)
    names = {"Literal": Literal, "Path": Path, **vars(config)}  # all that a signature may refer to
    exec(code, names)
    return names[verb]


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


class _Parser(argparse.ArgumentParser):
    """Raises its errors, so that they leave as all the user's mistakes do."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[0].lower()}{message[1:]}; see `{self.prog} --help`.")


@dataclass(frozen=True)
class _Flag:
    """One parameter of a step, or one option of its dataclasses, as a flag."""

    name: str
    kind: Any
    default: Any  # inspect.Parameter.empty: required
    help: str
    positional: bool = False
    is_output: bool = False

    def add_to(self, group: Any) -> None:
        """Add the flag to an argument parser or a group of it."""
        required = self.default is inspect.Parameter.empty
        text = self.help.replace("%", "%%")
        if not required and self.default not in (None, [], {}):
            text += f" [{str(self.default).lower() if isinstance(self.default, bool) else self.default}]"
        settings: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
        if self.kind is bool or bool in get_args(self.kind):
            settings |= {"action": argparse.BooleanOptionalAction}
        elif _is_json(self.kind):
            settings |= {"metavar": "JSON"}
        elif item := _item_of(self.kind):
            settings |= {"nargs": "+" if required else "*", "metavar": _metavar(item)}
        else:
            settings |= {"metavar": _metavar(self.kind)}
        if self.positional:
            settings |= {"metavar": self.name.upper()} | ({} if required or "nargs" in settings else {"nargs": "?"})
            group.add_argument(self.name, **settings)
        else:
            group.add_argument("--" + self.name.replace("_", "-"), dest=self.name, required=required, **settings)

    def read(self, text: Any) -> Any:
        """The value of the flag from what was typed."""
        try:
            value = json.loads(text) if _is_json(self.kind) and text != "none" else text
            return coerce(value, self.kind)
        except InputError as error:
            raise InputError(f"--{self.name.replace('_', '-')}: {error}") from error
        except json.JSONDecodeError as error:
            raise InputError(f"--{self.name.replace('_', '-')}: expected JSON, found {text!r} ({error}).") from error


def _run(verb: str, arguments: Sequence[str]) -> None:
    """Parse the arguments of a step and call it."""
    outline = _outline(verb)
    flags, sections = _flags_of(outline)
    if "--stub" in arguments:  # needs nothing but to know what to write
        flags = [replace(flag, default=None) for flag in flags]
    parser = _parser(verb, outline, flags, sections)
    given = vars(parser.parse_args(arguments))
    values = {flag.name: flag.read(given[flag.name]) for flag in flags if flag.name in given}
    for name, (cls, options) in sections.items():
        values[name] = _read_options(cls, options, given)
    if "results" in values and not given["stub"]:
        layout.require_inputs(verb, values["results"])
    if verb in STEPS:
        _log_head(verb, values)
    _check_paths(flags, values)
    if given["stub"]:
        _write_stubs(verb, values)
    else:
        step = getattr(importlib.import_module(f"ldvae.steps.{verb}"), verb)
        if text := step(**values):
            print(text)
    if given["versions_yml"]:
        Path(given["versions_yml"]).write_text(_versions_yml(verb))


def _flags_of(step: Callable[..., str | None]) -> tuple[list[_Flag], dict[str, tuple[type, list[_Flag]]]]:
    """A step's own flags, and those of each dataclass among its parameters."""
    hints = get_type_hints(step, include_extras=True)
    help_texts = _parameters_section(step)
    flags: list[_Flag] = []
    sections: dict[str, tuple[type, list[_Flag]]] = {}
    for parameter in inspect.signature(step).parameters.values():
        kind = hints[parameter.name]
        if isinstance(kind, type) and issubclass(kind, Options):
            sections[parameter.name] = (kind, [_option_flag(*item) for item in kind.model_fields.items()])
            continue
        plain, is_output = _without_output(kind)
        flags.append(
            _Flag(
                parameter.name,
                plain,
                parameter.default,
                help_texts.get(parameter.name, ""),
                parameter.kind is not inspect.Parameter.KEYWORD_ONLY,
                is_output,
            )
        )
    return flags, sections


def _option_flag(name: str, field: FieldInfo) -> _Flag:
    return _Flag(name, field.annotation, field.default, field.description or "")


def _read_options(cls: type[Options], options: list[_Flag], given: dict[str, Any]) -> Options:
    """Options from the flags that were given for them."""
    known = {flag.name: flag for flag in options if flag.name in given}
    texts = {name: given[name] for name in known}
    try:
        for name, flag in known.items():
            if _is_json(flag.kind) and isinstance(texts[name], str) and texts[name] != "none":
                texts[name] = json.loads(texts[name])
        return cls(**texts)
    except json.JSONDecodeError as error:
        raise InputError(f"--{name.replace('_', '-')}: expected JSON, found {texts[name]!r} ({error}).") from error
    except InputError as error:
        flagged = (line.partition(":") for line in error.args)
        raise InputError(*(f"--{name.replace('_', '-')}:{text}" for name, _, text in flagged)) from error


def _without_output(kind: Any) -> tuple[Any, bool]:
    """A type without the mark `Output`, and whether it had one."""
    if get_origin(kind) is Annotated:
        return get_args(kind)[0], True
    if get_origin(kind) in (Union, UnionType):
        parts = [_without_output(part) for part in get_args(kind)]
        return Union[tuple(part for part, _ in parts)], any(mark for _, mark in parts)  # noqa: UP007
    return kind, False


def _parameters_section(step: Callable[..., str | None]) -> dict[str, str]:
    """Help texts by parameter from a numpydoc docstring."""
    _, _, text = (inspect.getdoc(step) or "").partition("Parameters\n----------\n")
    text = re.split(r"\n\w+\n-{3,}\n", text)[0]
    entries = re.findall(r"^(\S[^\n]*)\n((?:[ ]+[^\n]*\n?|\n)+)", text + "\n", flags=re.MULTILINE)
    return {name.strip(): " ".join(body.split()) for names, body in entries for name in names.split(":")[0].split(",")}


def _parser(
    verb: str, step: Callable[..., str | None], flags: list[_Flag], sections: dict[str, tuple[type, list[_Flag]]]
) -> _Parser:
    summary = inspect.cleandoc(step.__doc__ or "").split("\nParameters\n")[0].strip()
    parser = _Parser(
        prog=f"ldvae {verb}",
        description=summary,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag in flags:
        flag.add_to(parser)
    for cls, options in sections.values():
        group = parser.add_argument_group((cls.__doc__ or "").splitlines()[0].rstrip("."))
        for flag in options:
            flag.add_to(group)
    group = parser.add_argument_group("for workflow engines")
    group.add_argument("--versions-yml", metavar="PATH", help="Write the versions of ldvae and what it uses.")
    group.add_argument("--stub", action="store_true", help="Write small valid outputs at once and compute nothing.")
    return parser


def _is_json(kind: Any) -> bool:
    return any(get_origin(part) is dict or part is config.Contrast for part in (kind, *get_args(kind)))


def _item_of(kind: Any) -> Any:
    """The type of a list's items, also for a list that may be none; None for anything else."""
    return next((get_args(part)[0] for part in (kind, *get_args(kind)) if get_origin(part) is list), None)


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) in (Union, UnionType):
        return _metavar(next(part for part in get_args(kind) if part is not type(None)))
    return {Path: "PATH", int: "N", float: "X"}.get(kind, "TEXT")


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


def _check_paths(flags: list[_Flag], values: dict[str, Any]) -> None:
    """Refuse missing inputs, and make the folders of the outputs."""
    for flag in flags:
        if flag.name == "results":
            continue
        given = values.get(flag.name)
        for path in given if isinstance(given, list) else [given]:
            if not isinstance(path, Path):
                continue
            if flag.is_output:
                path.parent.mkdir(parents=True, exist_ok=True)
            elif not path.exists():
                raise InputError(
                    f"--{flag.name.replace('_', '-')}: {path} is not there (working directory {Path.cwd()})."
                )


def _write_stubs(verb: str, values: dict[str, Any]) -> None:
    """Write small valid outputs of a verb."""
    if output := values.get("output"):
        _write_stub(output)
        return
    names = {"run": values.get("run", "run"), "projection": values.get("name", "projection")}
    for file in layout.outputs(verb):
        path = file.at(values["results"], **names)
        for part in [path / name for name in file.contents] or [path]:
            _write_stub(part)


def _write_stub(path: Path) -> None:
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
            ".json": "{}\n",
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

"""What a config expands to: datasets, their options, and their runs with ids."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ldvae.config.compared import same_columns
from ldvae.config.inputs import staged_input
from ldvae.config.options import (
    SECTIONS,
    AcrossConfig,
    AcrossSection,
    DeConfig,
    ModelConfig,
    Options,
    ProgramsConfig,
    ProjectConfig,
    QcConfig,
    Sections,
    SetupConfig,
    SweepConfig,
    TrainConfig,
    named,
    naming,
    unknown,
)
from ldvae.errors import InputError, suggestion
from ldvae.names import file_names

DATASET_NAME = r"^\w[\w.-]*$"  # of projections and runs, too: folders are called so
STEPS = ("qc", "setup", "select", "programs", "annotate", "de", "report")  # those with a section of their own
# Part of every run id. Raise it when a run with the same options ends in other numbers, which includes a change of a
# default of the model or the training: then all runs are trained again. Otherwise an upgrade retrains nothing.
TRAINING_VERSION = 2
# What runs of an older version had for options that it lacked, where today's default differs.
FORMER_DEFAULTS = {1: {"beta2": 0.999}}


class Run(NamedTuple):
    """One training: a setting, that is, the model and training options, and a seed."""

    model: ModelConfig
    train: TrainConfig
    seed: int

    @property
    def params(self) -> dict[str, Any]:
        """All model and training options by name."""
        return dict(self.model) | dict(self.train)

    @property
    def digest(self) -> str:
        """Hash of the options that differ from their defaults, not of the seed: runs of one setting share it."""
        defining = [TRAINING_VERSION, self.model.changed() | self.train.changed()]
        return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()[:6]

    @property
    def setting(self) -> str:
        """Id of the setting, such as `k10-3fa9c1`."""
        return f"k{self.model.n_latent}-{self.digest}"

    @property
    def id(self) -> str:
        """Id of the run, such as `k10-s0-3fa9c1`."""
        return f"k{self.model.n_latent}-s{self.seed}-{self.digest}"


def renamed_runs(folder: Path) -> dict[str, Run]:
    """Finished runs that an older version named otherwise, by the name of their folder.

    Parameters
    ----------
    folder
        Of the runs of a dataset, each with the metrics.json that says what it was trained with.
    """
    found = {}
    for path in sorted(folder.glob("*/metrics.json")):
        try:
            metrics = json.loads(path.read_text())
            version, name = metrics.get("training_version", 1), metrics["run"]
            params = FORMER_DEFAULTS.get(version, {}) | metrics["params"]
            model = ModelConfig(**{key: value for key, value in params.items() if key in ModelConfig.model_fields})
            train = TrainConfig(**{key: value for key, value in params.items() if key in TrainConfig.model_fields})
            run = Run(model, train, int(metrics["seed"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not the metrics of a run, or of a run that this version cannot make
        same_training = params.keys() <= run.params.keys() and version in (TRAINING_VERSION, *FORMER_DEFAULTS)
        # The second name: of a renaming that was interrupted.
        if same_training and path.parent.name != run.id and name in (path.parent.name, run.id):
            found[path.parent.name] = run
    return found


class Projection(NamedTuple):
    """Other cells to score with the programs of a dataset."""

    inputs: dict[str, str]
    project: ProjectConfig


@dataclass(frozen=True, kw_only=True)
class Dataset(Sections):
    """One dataset of the workflow: its files by name, its options, its runs by id and its projections by name."""

    name: str
    inputs: dict[str, str]
    runs: dict[str, Run]
    projections: dict[str, Projection]

    @property
    def compares_clusters(self) -> bool:
        """Whether a contrast is between clusters, which only the annotated cells have."""
        columns = {contrast.get(key) for contrast in self.de.contrasts for key in ("column", "within")}
        return bool(columns & {"leiden", "leiden_ldvae"})


class Across(NamedTuple):
    """Datasets whose programs are compared."""

    datasets: list[str]
    config: AcrossConfig


class Plan(NamedTuple):
    """What a config expands to, and how values were read that may be meant otherwise."""

    outdir: str
    datasets: dict[str, Dataset]
    notes: list[str]
    across: Across | None = None

    def path(self, *parts: str) -> str:
        """A path below the output folder."""
        return "/".join(parts) if self.outdir == "." else "/".join((self.outdir.rstrip("/"), *parts))


def load_config(path: Path) -> dict[str, Any]:
    """Read a config.yaml (or JSON) as it stands, unchecked but for keys that stand twice: YAML keeps the last."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            first: dict[str, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if key.tag in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null"):
                    raise InputError(
                        f"{path}: YAML does not read the name {key.value} in line {line} as text; put it in quotes."
                    )
                if key.value in first and key.tag != "tag:yaml.org,2002:merge":
                    raise InputError(
                        f"{path}: {key.value} occurs twice in one mapping, in lines {first[key.value]} and {line}, and "
                        "only the second would count; rename one of them, or remove it."
                    )
                first[key.value] = line
            return super().construct_mapping(node, deep)

    try:
        config = yaml.load(path.read_text(), Loader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a config.yaml.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not valid YAML: {' '.join(str(error).split())}.") from error
    if config is None:
        raise InputError(f"{path}: is empty; expected the keys of a config.yaml, of which `datasets` is needed.")
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds {type(config).__name__}, not the keys of a config.yaml.")
    return config


def expand_config(config: Mapping[str, Any]) -> Plan:
    """Datasets, options and runs of a config, whose data are not looked at.

    Raises
    ------
    InputError
        With every mistake of the config in one message.
    """
    plan, problems = expand(config)
    entries = config.get("datasets")
    problems += [
        f"datasets.{name}.split_by: its levels are in the data, which are not read here; call split_datasets first."
        for name, entry in (entries.items() if isinstance(entries, Mapping) else ())
        if isinstance(entry, Mapping) and entry.get("split_by") is not None
    ]
    raise_problems(problems, "the config")
    return plan


def expand(config: Mapping[str, Any]) -> tuple[Plan, list[str]]:
    """What `expand_config` returns and what it would raise; a mistaken option of the plan has its default."""
    problems = _unknown_keys(config, ["outdir", "datasets", "across", *SECTIONS], "")
    notes: list[str] = []
    entries = config.get("datasets")
    if not isinstance(entries, Mapping) or not entries:
        problems.append("datasets: expected at least one, as `name: {input: path/to/counts.h5ad}`.")
        entries = {}
    datasets = {}
    for name, entry in entries.items():
        where = f"datasets.{name}"
        if isinstance(name, bool | None):
            problems.append(f"{where}: YAML reads this name as {name}; put it in quotes, as in 'no'.")
        if not is_name(str(name)):
            problems.append(f"{where}: a dataset's name is made of letters, digits, '_', '-' and '.'.")
        if not isinstance(entry, Mapping):
            entry = {"input": entry}
        problems += _unknown_keys(entry, ["input", "split_by", "project", *SECTIONS], f"{where}.")
        given = {key: {key: config.get(key), f"{where}.{key}": entry.get(key)} for key in SECTIONS}
        mistakes: dict[str, list[str]] = {key: [] for key in SECTIONS}
        options: dict[str, Any] = {key: _read_section(cls, given[key], mistakes[key]) for key, cls in SECTIONS.items()}
        problems += itertools.chain.from_iterable(mistakes.values())
        notes += [note for at, layer in given["de"].items() for note in _readings(at, layer)]
        problems += [f"{where}.{problem}" for problem in contradictions_of_qc(options["qc"])]
        problems += [f"{where}.{problem}" for problem in contradictions_of_setup(options["setup"])]
        problems += [f"{where}.{problem}" for problem in _columns_named_twice(options["programs"], options["de"])]
        inputs = _named_inputs(entry.get("input"), where, problems)
        runs = _runs(options["model"].architecture(), options["train"], options["sweep"], where, problems)
        chosen, settings = options["select"].setting, list(dict.fromkeys(run.setting for run in runs.values()))
        if chosen not in (None, *settings) and not any(mistakes[key] for key in ("model", "train", "sweep")):
            problems.append(f"{where}.select.setting: no setting {chosen!r}.{suggestion(chosen, settings)}")
        projections = _projections(entry.get("project"), f"{where}.project", problems)
        datasets[str(name)] = Dataset(name=str(name), inputs=inputs, runs=runs, projections=projections, **options)
    across = _across(config.get("across"), list(datasets), problems)
    outdir = config.get("outdir")
    if not isinstance(outdir, str | int | None) or isinstance(outdir, bool) or Path(str(outdir or ".")).is_file():
        problems.append(
            f"outdir: expected the path of a folder, found {outdir!r}{' (a file)' * isinstance(outdir, str)}."
        )
    return Plan(str(config.get("outdir") or "."), datasets, list(dict.fromkeys(notes)), across), problems


def _across(given: Any, names: list[str], problems: list[str]) -> Across | None:
    """Datasets that are compared with each other; none where the config names none."""
    section: Any = _read_section(AcrossSection, {"across": given}, problems)
    wanted = names if section.compare == ["all"] else list(dict.fromkeys(section.compare or []))
    problems += [
        f"across.compare: no dataset {name!r}.{suggestion(name, names)}" for name in wanted if name not in names
    ]
    if not wanted or not set(wanted) <= set(names):
        return None
    if len(wanted) < 2:
        problems.append(
            f"across.compare: expected two datasets or more, found {wanted[0]} alone; name another, or none."
        )
        return None
    keys = {name: getattr(section, name) for name in naming(AcrossConfig, "obs")}
    problems += [f"across: {problem}" for problem in same_columns(keys)]
    if "across" in names:
        problems.append("datasets.across: results/across holds the comparison of the datasets; choose another name.")
    options = {name: getattr(section, name) for name in AcrossConfig.model_fields}
    return Across(wanted, AcrossConfig(**options))


def raise_problems(problems: Iterable[str], subject: str) -> None:
    """Raise one InputError that lists the problems, each once, if there are any."""
    distinct = list(dict.fromkeys(problems))
    if len(distinct) == 1:
        raise InputError(distinct[0])
    if distinct:
        raise InputError("\n- ".join([f"{len(distinct)} problems in {subject}:", *distinct]))


def _unknown_keys(given: Iterable[Any], known: list[str], prefix: str) -> list[str]:
    return [f"{prefix}{key}: {unknown(key, known)}" for key in given if key not in known]


def _read_section(cls: type[Options], layers: Mapping[str, Any], problems: list[str]) -> Options:
    """A section from the values given for it, later layers over earlier ones; mistaken values are left out."""
    values: dict[str, Any] = {}
    for where, layer in layers.items():
        if layer is None:
            continue
        if not isinstance(layer, Mapping):
            problems.append(f"{where}: expected keys and values, found {layer!r}.")
            continue
        layer = {str(key): value for key, value in layer.items()}
        try:
            read = cls(**layer)
        except InputError as error:
            problems += [f"{where}.{line}" for line in error.args]
            mistaken = {re.split(r"[.:\[]", line)[0] for line in error.args}
            read = cls(**{key: layer[key] for key in layer.keys() & cls.model_fields.keys() - mistaken})
        values |= {key: getattr(read, key) for key in read.model_fields_set}
    return cls(**values)


def contradictions_of_qc(qc: QcConfig) -> list[str]:
    """Options of quality control that do not go together, whatever the data."""
    problems = []
    for what in ("counts", "genes"):
        least, most = getattr(qc, f"min_{what}"), getattr(qc, f"max_{what}")
        if least is not None and most is not None and least > most:
            problems.append(
                f"qc: min_{what} ({least:g}) is above max_{what} ({most:g}), so that no cell could be kept."
            )
    if qc.subset and qc.subset_key is None:
        problems.append("qc.subset: names levels, but qc.subset_key names no obs column that has them.")
    return problems


def contradictions_of_setup(setup: SetupConfig) -> list[str]:
    """Options of the setup that do not go together, whatever the data."""
    problems = []
    columns = [
        *(("categorical_covariate_keys", key) for key in setup.categorical_covariate_keys),
        *(("continuous_covariate_keys", key) for key in setup.continuous_covariate_keys),
        *([("batch_key", setup.batch_key)] if setup.batch_key is not None else []),
    ]
    repeated = {key for i, (_, key) in enumerate(columns) if key in [other for _, other in columns[:i]]}
    for key in sorted(repeated):
        places = ", ".join(option for option, other in columns if other == key)
        problems.append(f"setup: obs column {key!r} is named twice ({places}); name it once.")
    if setup.genes == "list" and setup.gene_list is None:
        problems.append("setup.gene_list: `genes: list` needs the path of a file with one gene name per line.")
    if setup.genes != "list" and setup.gene_list is not None:
        problems.append(f"setup.gene_list: `genes: {setup.genes}` reads no list; write `genes: list`, or leave it out.")
    if (held_out := setup.validation_size + setup.test_size) >= 1:
        problems.append(f"setup: validation_size and test_size together are {held_out:g}; leave cells for training.")
    return problems


def _columns_named_twice(programs: ProgramsConfig, de: DeConfig) -> list[str]:
    """Comparisons of the groups of a column whose groups are the replicates, too."""
    keys = {"replicate_key": programs.replicate_key, "condition_key": programs.condition_key}
    problems = [f"programs: {problem}" for problem in same_columns(keys)]
    for i, contrast in enumerate(de.contrasts):
        keys = {"replicate_key": de.replicate_key, f"contrasts[{i}].column": contrast["column"]}
        problems += [f"de: {problem}" for problem in same_columns(keys)]
    return problems


def _readings(where: str, section: Any) -> list[str]:
    """What was made of the names of groups that are not text: `group1: yes` is true for YAML, `group1: 01` is 1."""
    contrasts = section.get("contrasts") if isinstance(section, Mapping) else None
    if not isinstance(contrasts, list):
        return []
    return [
        f"{where}.contrasts[{i}].{key}: YAML reads it as {contrast[key]!r}, taken as the group {str(contrast[key])!r}"
        + (f" (or {'yes' if contrast[key] else 'no'}, where there is none)" if isinstance(contrast[key], bool) else "")
        + "; if another group is meant, put its name in quotes."
        for i, contrast in enumerate(contrasts)
        for key in ("group1", "group2")
        if isinstance(contrast, Mapping) and not isinstance(contrast.get(key), str | None)
    ]


def _projections(given: Any, where: str, problems: list[str]) -> dict[str, Projection]:
    """Projections by name: a path, or a mapping of `input` and the options of `ldvae project`."""
    if not isinstance(given, Mapping | None):
        problems.append(f"{where}: expected `name: path` or `name: {{input: path, …}}`, found {given!r}.")
        return {}
    found = {}
    for name, entry in (given or {}).items():
        if not is_name(str(name)):
            problems.append(f"{where}.{name}: a name is made of letters, digits, '_', '-' and '.'.")
        options = dict(entry) if isinstance(entry, Mapping) else {"input": entry}
        inputs = _named_inputs(options.pop("input", None), f"{where}.{name}", problems)
        read: Any = _read_section(ProjectConfig, {f"{where}.{name}": options}, problems)
        found[str(name)] = Projection(inputs, read)
    return found


def _named_inputs(given: Any, where: str, problems: list[str]) -> dict[str, str]:
    """Input files by name: a path, a list of paths (named as the files), or a mapping of names to paths."""
    several = list(given.values()) if isinstance(given, Mapping) else given if isinstance(given, list) else []
    if len(several) > 1 and any(isinstance(path, str) and path.startswith("demo:") for path in several):
        problems.append(f"{where}.input: the embedded data (demo:…) cannot be one of several inputs; name them alone.")
        return {}
    if isinstance(given, str) and given:
        return {"": given}
    if isinstance(given, list) and given and all(isinstance(path, str) for path in given):
        try:
            return dict(zip(file_names(given), given, strict=True))
        except InputError as error:
            problems.append(f"{where}.input: {error}")
    elif isinstance(given, Mapping) and given and all(isinstance(path, str) for path in given.values()):
        return {str(name): path for name, path in given.items()}
    else:
        problems.append(
            f"{where}.input: expected a path, a list of paths or a mapping of names to paths, found {given!r}."
        )
    return {}


def expand_sweep(model: ModelConfig, train: TrainConfig, sweep: SweepConfig) -> dict[str, Run]:
    """Runs of a sweep by id: what is not swept is as in `model` and `train`.

    The settings are all combinations of the grid (without a grid, that of `model` and `train` alone) and the points.

    Examples
    --------
    >>> runs = expand_sweep(ModelConfig(), TrainConfig(), SweepConfig(seeds=[0, 1], grid={"n_latent": [8, 9]}))
    >>> [(run.model.n_latent, run.seed) for run in runs.values()]
    [(8, 0), (8, 1), (9, 0), (9, 1)]
    """
    problems: list[str] = []
    runs = _runs(model, train, sweep, "", problems)
    raise_problems(problems, "the sweep")
    return runs


def _runs(
    model: ModelConfig, train: TrainConfig, sweep: SweepConfig, where: str, problems: list[str]
) -> dict[str, Run]:
    """Runs of a sweep by id, each once, by setting and then by seed."""
    grid = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    runs: dict[str, Run] = {}
    for point in (*grid, *sweep.points):
        # The values of a point were checked with the sweep.
        changed = [_only(point, part) for part in (model, train)]
        setting = Run(model.model_copy(update=changed[0]), train.model_copy(update=changed[1]), seed=0)
        for seed in sweep.seeds:
            run = setting._replace(seed=seed)
            if runs.setdefault(run.id, run) != run:
                problems.append(f"{where}.sweep: two settings have the same id {run.id}; change one by a hair.")
    return runs


def _only(values: Mapping[str, Any], part: Options) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in type(part).model_fields}


def is_name(name: str) -> bool:
    """Whether a dataset, a projection or a run can be called so.

    Examples
    --------
    >>> is_name("pbmc_3k.v2"), is_name("a/b"), is_name("..")
    (True, False, False)
    """
    return re.match(DATASET_NAME, name) is not None


def flags(options: Options) -> list[str]:
    """Options as flags of the command line: those alone that differ from the defaults."""
    result: list[str] = []
    for name, value in options.changed().items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            result.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
            result += [f"--{flag}", *map(str, value)]
        elif isinstance(value, list | dict):
            result += [f"--{flag}", json.dumps(value)]
        else:
            result += [f"--{flag}", "none" if value is None else str(value)]
    return result


def resolved(dataset: Dataset) -> dict[str, Any]:
    """The options of a dataset that define its results, section by section, with every default filled in."""
    return {section: getattr(dataset, section).model_dump() for section in SECTIONS if section != "compute"}


def runs_table(dataset: Dataset) -> str:
    """Table (TSV) of the runs of a dataset: ids, seed and every parameter that defines a run."""
    rows = [{"run": run.id, "setting": run.setting, "seed": run.seed, **run.params} for run in dataset.runs.values()]
    lines = [[*rows[0]], *([*row.values()] for row in rows)]
    return "".join("\t".join("" if value is None else str(value) for value in line) + "\n" for line in lines)


def describe(plan: Plan) -> dict[str, Any]:
    """A plan as plain values for other engines: files to hand over, and flags as they stand in the commands."""
    return {
        "outdir": plan.outdir,
        "across": {
            "datasets": plan.across.datasets if plan.across else [],
            "flags": shlex.join(flags(plan.across.config)) if plan.across else "",
        },
        "datasets": [
            {
                "dataset": name,
                "inputs": [staged_input(path, dataset.qc.genome) for path in _files(dataset.inputs)],
                "tables": {step: [path for _, path in named(getattr(dataset, step), "file")] for step in STEPS},
                "flags": {step: shlex.join(_flags_of_step(dataset, step)) for step in STEPS},
                "contrasts": dataset.de.contrasts,
                "compares_clusters": dataset.compares_clusters,
                "runs": [
                    {
                        "run": run.id,
                        "setting": run.setting,
                        "seed": run.seed,
                        "max_epochs": _epochs_at_most(run.train),
                        "flags": shlex.join(["--seed", str(run.seed), *flags(run.model), *flags(run.train)]),
                    }
                    for run in dataset.runs.values()
                ],
                "projections": [
                    {
                        "projection": projection,
                        "inputs": [staged_input(path, other.project.genome) for path in _files(other.inputs)],
                        "flags": shlex.join(name_flags(other.inputs) + flags(other.project)),
                    }
                    for projection, other in dataset.projections.items()
                ],
                "compute": dataset.compute.model_dump(),
                "resolved": json.dumps(resolved(dataset)),
            }
            for name, dataset in plan.datasets.items()
        ],
    }


def _epochs_at_most(train: TrainConfig) -> int | None:
    """Epochs of a training at most; None for those that `ldvae setup` notes for its cells, by the default options."""
    if train.max_epochs is None and train.batch_size != TrainConfig().batch_size:
        return train.fit_config(1).max_epochs  # of no other number of cells it is more
    return train.max_epochs


def _flags_of_step(dataset: Dataset, step: str) -> list[str]:
    """Flags of a step but for its files, which an engine may put elsewhere."""
    options = getattr(dataset, step)
    defaults = {name: getattr(type(options)(), name) for name, _ in named(options, "file")}
    result = flags(options.model_copy(update=defaults))
    if step == "qc":
        result = [*name_flags(dataset.inputs), *column_flags(dataset.setup), *result]
    return result


def column_flags(setup: SetupConfig) -> list[str]:
    """Flags of the columns that qc needs and that setup registers: batch and labels."""
    named = {"--batch-key": setup.batch_key, "--labels-key": setup.labels_key}
    return [part for flag, column in named.items() if column is not None for part in (flag, column)]


def _files(inputs: Mapping[str, str]) -> list[str]:
    return [path for path in inputs.values() if not path.startswith("demo:")]


def name_flags(inputs: Mapping[str, str]) -> list[str]:
    """Flags that name the input files, where there are several."""
    return ["--names", *inputs] if "" not in inputs else []

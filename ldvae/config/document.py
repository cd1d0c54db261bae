"""The JSON schema and the commented config.yaml, both made from the options."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from ldvae.config.options import SECTIONS, AcrossSection, ModelSection, Options, ProjectConfig, TrainConfig
from ldvae.config.plan import DATASET_NAME
from ldvae.config.splits import MIN_CELLS

# What is read from text: YAML 1.1 leaves 1e-3 as text, and so do command lines.
NUMBER = r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?"
NONE = r"|[Nn][Oo][Nn][Ee]|[Nn][Uu][Ll][Ll]|~"
BOOLEAN = r"^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]|[Yy][Ee][Ss]|[Nn][Oo]|[Oo][Nn]|[Oo][Ff][Ff])$"
# As the repository has it: the embedded demo.
DEMO = """\
# The workflow's choices. As it stands it runs the embedded demo; for your own data edit `datasets`, then `ldvae check
# config/config.yaml`, then `snakemake --cores all` (or --profile slurm). config/README.md says how to choose.
#
# A dataset may override any section:  datasets: {mine: {input: counts.h5ad, model: {n_latent: 20}}}

# Folder of results/, logs/, benchmarks/ and checkpoints/; . is the folder that snakemake runs in.
outdir: .

# Each dataset by name. input: h5ad, 10x folder or h5, zarr, loom, mtx, csv or tsv, a URL, or demo:pbmc68k; several
# files as a list, or as name: path. split_by: patient (an obs column) makes one dataset of each level.
datasets:
  pbmc68k:
    input: demo:pbmc68k
    setup:
      genes: all # the demo holds its 765 most variable genes alone
      stratify_by: bulk_labels
    model:
      n_latent: 10 # 700 cells settle all programs of ten factors, and not all of the default's
    de:
      contrasts:
        - column: bulk_labels

# What follows holds for every dataset; the values are the defaults.
"""


def commented_config() -> str:
    """The config.yaml of the demo, with every option, its default and its help text as a comment."""
    lines = [DEMO]
    sections: dict[str, type[Options]] = {**SECTIONS, "across": AcrossSection}
    for section, cls in sections.items():
        lines += [_comment(summary(cls), ""), f"{section}:"]
        for name, field in cls.model_fields.items():
            lines += [_comment(field.description or "", "  "), f"  {name}: {_yaml(field.default)}"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def summary(cls: type[Options]) -> str:
    """First line of the docstring of a section."""
    return (cls.__doc__ or "").splitlines()[0]


def _comment(text: str, indent: str) -> str:
    mark = f"{indent}# "
    return textwrap.fill(
        text, 118, initial_indent=mark, subsequent_indent=mark, break_long_words=False, break_on_hyphens=False
    )


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, float):
        return f"{value:.10f}".rstrip("0") if 0 < abs(value) < 1e-3 else repr(value)  # 1e-06 is text in YAML 1.1
    return value if isinstance(value, str) else json.dumps(value)


def schema() -> dict[str, Any]:
    """JSON schema of config.yaml: types, limits, defaults and help texts, for editors and other tools.

    It accepts all that `expand_config` accepts; what it cannot express, `expand_config` alone refuses.
    """
    sections = {key: _schema_of(cls) for key, cls in SECTIONS.items()}
    text = {"type": "string", "minLength": 1}
    several = [
        {"type": "array", "items": text, "minItems": 1},
        {"type": "object", "additionalProperties": text, "minProperties": 1},
    ]
    files = {"description": "Path, URL or demo:pbmc68k; several as a list or as name: path.", "anyOf": [text, *several]}
    references = {key: {"$ref": f"#/$defs/{key}"} for key in sections}
    projection = _schema_of(ProjectConfig)
    projection["properties"] = {"input": files} | projection["properties"]
    projections = {
        "type": ["object", "null"],
        "description": "Other cells to score with this dataset's programs, each by name.",
        "propertyNames": {"pattern": DATASET_NAME},
        "additionalProperties": {"anyOf": [*files["anyOf"][:2], projection]},
    }
    column = {"type": ["string", "number"]}
    min_cells = {
        "type": "integer",
        "minimum": 1,
        "default": MIN_CELLS,
        "description": "Levels of fewer cells are left out.",
    }
    leave_out = {
        "type": "array",
        "items": {"type": ["string", "number", "boolean"]},
        "description": "Levels that become no dataset, such as doublets or cells that no patient is known of.",
    }
    split_by = {
        "description": "Obs column, such as the patient: each level becomes a dataset of the name <dataset>-<level>.",
        "anyOf": [
            {"type": ["string", "number", "null"]},
            {
                "type": "object",
                "properties": {"column": column, "min_cells": min_cells, "leave_out": leave_out},
                "required": ["column"],
                "additionalProperties": False,
            },
        ],
    }
    dataset = {
        "type": "object",
        "properties": {"input": files, "split_by": split_by, "project": projections, **references},
        "required": ["input"],
        "additionalProperties": False,
    }
    outdir = {
        "type": ["string", "null"],
        "default": ".",
        "description": "Folder of results/, logs/, benchmarks/ and checkpoints/; . is the working directory.",
    }
    datasets = {
        "type": "object",
        "description": "Each dataset by name, with its input and its own values for any section.",
        "propertyNames": {"pattern": DATASET_NAME},
        "minProperties": 1,
        "additionalProperties": {"anyOf": [*files["anyOf"][:2], dataset]},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "config.yaml of the ldvae workflow",
        "type": "object",
        "properties": {"outdir": outdir, "datasets": datasets, **references, "across": _schema_of(AcrossSection)},
        "required": ["datasets"],
        "additionalProperties": False,
        "$defs": sections,
    }


def _schema_of(cls: type[Options]) -> dict[str, Any]:
    made = cls.model_json_schema()
    properties = {name: _property(field, made.get("$defs", {})) for name, field in made["properties"].items()}
    if "grid" in properties:
        swept = _properties_of_settings()
        lists = {name: {"type": "array", "minItems": 1, "items": option} for name, option in swept.items()}
        properties["grid"] |= {"properties": lists, "additionalProperties": False}
        properties["points"]["items"] = {"type": "object", "properties": swept, "additionalProperties": False}
    return {
        "type": ["object", "null"],
        "description": summary(cls),
        "properties": properties,
        "additionalProperties": False,
    }


def _properties_of_settings() -> dict[str, Any]:
    """Model and training options, as their own sections have them."""
    sections: dict[str, type[Options]] = {"model": ModelSection, "train": TrainConfig}
    return {
        name: {"$ref": f"#/$defs/{section}/properties/{name}"}
        for section, cls in sections.items()
        for name in cls.model_fields
    }


def _property(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Schema of an option: description, type and limits with the spellings that `options.as_meant` reads, default."""
    known = next((part for part in field.get("anyOf", []) if part["type"] != "null"), field)
    plain = _as_read(known, definitions, nullable="anyOf" in field or known["type"] in ("array", "object"))
    return {"description": field["description"], **plain, "default": field["default"]}


def _as_read(part: dict[str, Any], definitions: dict[str, Any], nullable: bool = False) -> dict[str, Any]:
    if "$ref" in part:
        part = definitions[part["$ref"].split("/")[-1]]
        properties = {name: _as_read(kind, definitions) for name, kind in part["properties"].items()}
        return {"type": "object", "properties": properties, "required": part["required"], "additionalProperties": False}
    null = ["null"] * nullable
    plain = {key: value for key, value in part.items() if key not in ("title", "description", "default", "type")}
    kind = part["type"]
    if isinstance(kind, list):  # the name of a group
        return {"type": kind}
    if "enum" in part:
        return {"enum": [*part["enum"], *([False] if "off" in part["enum"] else [])]}
    if kind in ("integer", "number"):
        return {"type": [kind, "string", *null], **plain, "pattern": rf"^\s*({NUMBER}{NONE * nullable})\s*$"}
    if kind == "boolean":
        return {"type": ["boolean", "string", *null], "pattern": BOOLEAN}
    if kind == "string":
        return {"type": ["string", "number", *null], **plain}
    if kind == "array":
        items = _as_read(part["items"], definitions) if part["items"] else {}
        return {"type": ["array", *null], **plain, "items": items}
    return {"type": [kind, *null]}

"""Sentences of the methods section: they name what the code beside them calls, and the options that ran."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ldvae import markers
from ldvae.config import DeConfig, ProgramsConfig
from ldvae.errors import listed
from ldvae.methods import Sentence, numbered
from ldvae.programs import donors, effects, find, rotation
from ldvae.steps import annotate, de, doublets, qc, report, select, setup, train

enrichment = importlib.import_module("ldvae.programs.enrichment")  # the package has a function of that name

# Packages and functions that a text can name: each must be among the tools of its sentence.
NAMES = {
    "Scrublet": "scanpy.pp.scrublet",
    "UMAP": "scanpy.tl.umap",
    "Leiden": "scanpy.tl.leiden",
    "PyDESeq2": "pydeseq2",
    "PyTorch": "torch",
    "SciPy": "scipy",
    "scanpy": "scanpy",
    "anndata": "anndata",
    "statsmodels": "statsmodels",
    "GSEApy": "gseapy",
    "decoupler": "decoupler",
    "scikit-learn": "sklearn",
    "Harmony": "harmonypy",
}
QC = {
    "n_obs_before": 315,
    "n_obs_after": 300,
    "n_vars_before": 5000,
    "n_vars_after": 4200,
    "thresholds": {"pct_counts_mt": {"a": {"lower": None, "upper": 20.0}}},
    "per_batch": {"a": {"before": 400}, "b": {"before": 500}},
    "doublets": {"mode": "annotate", "n_predicted": 9},
    "settings": {"n_mads": 8, "min_cells": 3},
}
SETUP = {"n_vars": 120, "method": "seurat_v3", "n_train": 240, "n_validation": 30, "n_test": 30, "settings": {}}
SETUP |= {"fields": {"labels_key": "cell_type"}}
RUN = {"epochs": 40, "stopped_early": True, "versions": {"torch": "2.13.0"}}
OPTIONS = {"n_latent": 12, "gene_likelihood": "nb", "n_hidden": 128, "n_layers": 1, "lr": 0.01, "beta2": 0.99}
OPTIONS |= {"schedule": "cosine", "batch_size": 128, "kl_warmup": 0.25, "start_at_mean": False}
PROGRAMS = {"runs": ["a", "b"], "rank": 8, "intercept": True, "settings": ProgramsConfig().model_dump()}
CONTRASTS = pd.DataFrame({"contrast": ["B vs rest"], "pseudobulk": [True]})
CHOICE = {"reason": "the largest rank", "outliers": ["k9"], "settings": {"outlier_mads": 5.0}}


def of_programs(**settings: Any) -> Iterable[Sentence]:
    return find.methods(PROGRAMS | {"settings": PROGRAMS["settings"] | settings}, 9)


def of_contrasts(**settings: Any) -> Iterable[Sentence]:
    return de.methods(DeConfig(replicate_key="donor").model_dump() | settings, CONTRASTS, "k12-s0")


#: Each module with its sentences, all branches taken.
STATED: dict[Any, Callable[[], Iterable[Sentence]]] = {
    qc: lambda: qc.methods(QC, {"ldvae": "0.1.0"}),
    doublets: lambda: doublets.methods(QC),
    setup: lambda: [
        sentence
        for method in ("seurat_v3", "pearson_residuals", "list", "all")
        for sentence in setup.methods(SETUP | {"method": method})
    ],
    train: lambda: train.methods([RUN], OPTIONS, "lane"),
    select: lambda: select.methods(CHOICE, 3, 9),
    annotate: lambda: annotate.methods({"n_neighbors": 15, "resolution": 1.0}, True, 500),
    de: of_contrasts,
    markers: lambda: markers.methods(0.05, 0.6),
    find: of_programs,
    rotation: lambda: [rotation.methods(PROGRAMS["settings"])],
    effects: lambda: [effects.methods()],
    donors: lambda: [donors.methods({"condition_key": "condition", "replicate_key": "donor"})],
    enrichment: lambda: enrichment.methods(["hallmark"]),
}


def used(source: str) -> set[str]:
    """Dotted names that a module imports or calls, such as scanpy.pp.scrublet, and the packages above them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return found | {name.rsplit(".", i)[0] for name in found for i in range(1, name.count(".") + 1)}


@pytest.mark.parametrize("module", STATED, ids=lambda module: module.__name__)
def test_a_tool_that_is_named_is_one_that_the_code_beside_calls(module: Any) -> None:
    if not inspect.ismodule(module):  # ldvae.steps.qc and its like are functions of that name
        pytest.fail("give the module")
    known = used(Path(str(module.__file__)).read_text(encoding="utf-8"))
    for sentence in STATED[module]():
        for tool in sentence.tools:
            elsewhere = [*markers.methods(0.05, 0.6), *doublets.methods(QC)]  # beside the code in their modules
            assert sentence in elsewhere or tool in known, f"{tool} is named, and {module.__name__} does not use it"
        for name, tool in NAMES.items():
            if re.search(rf"\b{name}\b", sentence.text):
                assert any(stated.startswith(tool) for stated in sentence.tools), f"{name} in: {sentence.text}"


@pytest.mark.parametrize("module", STATED, ids=lambda module: module.__name__)
def test_every_reference_that_is_cited_is_given(module: Any) -> None:
    for sentence in STATED[module]():
        for keys in re.findall(r"\[@([^\]]+)\]", sentence.text):
            for key in keys.split("; @"):
                assert key in sentence.references, key


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (lambda: of_programs(balance=0.5), "weight of the loadings 0.5"),
        (lambda: of_programs(balance=0.0), "was maximized over the scores, a criterion"),
        (lambda: of_programs(power=3.0), "promax rotation of power 3 "),
        (lambda: of_programs(power=1.0), "no oblique rotation followed"),
        (lambda: of_programs(rotation="clean"), "subtracted from the loadings of each program, by an L1 regression"),
        (lambda: of_programs(rotation="parts"), "mean absolute loading was minimized"),
        (lambda: of_contrasts(delta=0.5), "log2 fold change beyond 0.5"),
        (lambda: of_contrasts(fdr=0.1), "false discovery rate of 10%"),
        (lambda: of_contrasts(fdr=0.1), "p value below 0.1"),
        (
            lambda: of_contrasts(replicate_key="mouse", min_cells=25),
            "per mouse and group, where a replicate had at least 25",
        ),
        (lambda: train.methods([RUN], OPTIONS | {"lr": 0.002}, ""), "learning rate 0.002"),
        (lambda: train.methods([RUN], OPTIONS | {"beta2": 0.999}, ""), "beta2 0.999"),
        (lambda: train.methods([RUN], OPTIONS | {"kl_warmup": 0.5}, ""), "over the first 50% of the epochs"),
        (lambda: train.methods([RUN], OPTIONS | {"schedule": "plateau"}, ""), "lowered on plateaus"),
        (lambda: train.methods([RUN | {"params": {"n_latent": 7}}], OPTIONS, ""), "with 7 factors"),
        (lambda: train.methods([RUN], OPTIONS | {"gene_likelihood": "zinb"}, ""), "zero-inflated negative binomial"),
        (lambda: train.methods([RUN, RUN | {"epochs": 55}], OPTIONS, ""), "took 40 to 55 epochs"),
        (lambda: setup.methods(SETUP | {"settings": {"stratify_by": "batch"}}), "each level of batch"),
        (lambda: qc.methods(QC | {"settings": {"n_mads": 5}}, {}), "lie 5 median absolute deviations"),
        (
            lambda: qc.methods(QC | {"doublets": {"mode": "filter"}, "per_batch": {"a": {"before": 20_000}}}, {}),
            "Scrublet [@scrublet], in random parts of at most 10,000 cells, and removed",
        ),
        (lambda: annotate.methods({"n_neighbors": 30, "resolution": 0.4}, True, 500), "resolution 0.4"),
        (lambda: select.methods(CHOICE | {"settings": {"outlier_mads": 7.0}}, 1, 3), "by more than 7 median"),
        (lambda: [donors.methods({"condition_key": "dose", "replicate_key": "mouse"})], "levels of dose with mouse as"),
    ],
)
def test_a_sentence_names_the_option_that_ran(stated: Callable[[], Iterable[Sentence]], words: str) -> None:
    assert words in " ".join(sentence.text for sentence in stated())


def test_what_was_not_done_is_not_said() -> None:
    apart = of_programs(power=1.0)
    assert "promax" not in " ".join(sentence.text for sentence in apart)
    joint = of_programs(rotation="joint")
    assert "L1 regression" not in " ".join(sentence.text for sentence in joint)
    single = " ".join(sentence.text for sentence in find.methods(PROGRAMS | {"runs": ["a"]}, 9))
    assert "consensus" not in single
    assert "averaged" not in single
    bare = " ".join(s.text for s in de.methods(DeConfig().model_dump(), CONTRASTS.assign(pseudobulk=False), "k12-s0"))
    assert "PyDESeq2" not in bare
    limits = {"settings": {"n_mads": 5}}
    for batches, told in (({"all": {}}, False), ({"a": {}, "b": {}}, True)):
        text = " ".join(s.text for s in qc.methods(QC | limits | {"per_batch": batches, "doublets": {}}, {}))
        assert ("batch by batch" in text) == told
    off = " ".join(s.text for s in qc.methods(QC | {"doublets": {"mode": "off"}}, {}))
    assert "Scrublet" not in off


def test_the_engine_that_ran_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LDVAE_PROCESS", raising=False)
    assert [s.text for s in report.methods_of_engine(False)] == []
    assert "Snakemake" in next(iter(report.methods_of_engine(True))).text
    monkeypatch.setenv("LDVAE_PROCESS", "LDVAE:REPORT")
    assert "Nextflow" in next(iter(report.methods_of_engine(False))).text


def test_versions_dates_and_changed_code_are_told() -> None:
    versions = report.merged_versions(
        [{"python": "3.11.2", "scipy": "1.17"}, {"scipy": "1.17", "pydeseq2": "0.5"}, {"pydeseq2": "0.6"}, {}]
    )
    told = [s.text for s in report.methods_of_environment([{"date": "2026-01-02"}, {"date": "2026-01-03"}], versions)]
    assert told == [
        "The models were trained on 2026-01-02 to 2026-01-03.",
        "Versions: Python 3.11.2, scipy 1.17 and pydeseq2 0.5 and 0.6.",
    ]
    assert not list(report.methods_of_environment([{}], {}))
    commit = "0123456789abcdef"
    for known, words in ((commit, "(commit 0123456789),"), (f"{commit}-dirty", "(commit 0123456789, with changes),")):
        assert words in next(iter(qc.methods(QC, {"ldvae": "0.1.0", "commit": known}))).text


def test_references_are_numbered_as_they_are_cited_and_brackets_of_names_stay() -> None:
    one = Sentence("B [@b; @a], a column [@mine].", {"a": "A 2001", "b": "B 2002"})
    two = Sentence("A [@a].", {"a": "A 2001"})
    assert numbered([[one, two]]) == (["B [1, 2], a column [@mine]. A [2]."], ["B 2002", "A 2001"])


def test_listed_cuts_long_lists() -> None:
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(list("abcdefghij"), 4) == "a, b, c and 7 more"

"""The results folder of a dataset: every file by name, what it holds, which verb writes it and which verbs read it.

The steps, the rules of Snakemake and the processes of Nextflow take their paths from here, and from nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldvae.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from ldvae.config import Dataset


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of the results folder, or a folder when it has no suffix.

    Attributes
    ----------
    path
        Path below the results folder; {run} and {projection} stand for names.
    holds
        What is in it, with the columns of a table and their units.
    writer, readers
        Verbs.
    text
        Columns of a table that are text, so that a gene called NA or 7 keeps its name.
    index
        Column of a table that names its rows.
    contents
        Files that a folder always holds.
    """

    path: str
    holds: str
    writer: str
    readers: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    index: str | None = None
    contents: tuple[str, ...] = ()

    def at(self, results: Path, **names: str) -> Path:
        """Path of the file in a results folder; `names` are the run or the projection."""
        return Path(results) / self.path.format(**names)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return not Path(self.path).suffix

    def results_of(self, path: str | Path) -> Path:
        """The results folder in which the file has this path."""
        return Path(path).parents[len(Path(self.path).parts) - 1]

    def existing(self, results: Path, **names: str) -> Path:
        """Path of the file; an InputError that names the verb that writes it if it is missing."""
        path = self.at(results, **names)
        if not path.exists():
            raise InputError(
                f"{path} is not there (working directory {Path.cwd()}); `ldvae {self.writer}` writes it. "
                "Run that first, or give another --results."
            )
        return path

    def read(self, results: Path, **names: str) -> Any:
        """The contents: a dictionary of a JSON file, a DataFrame of a table."""
        path = self.existing(results, **names)
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        return self.read_table(results, **names)

    def read_table(self, results: Path, **names: str) -> pd.DataFrame:
        """The contents of a table."""
        from ldvae.io import read_table

        return read_table(self.existing(results, **names), index=self.index, text=self.text)


# plan

RUNS_TABLE = File(
    path="runs.tsv",
    holds="The runs of the dataset: run, setting, seed and every option of the model and its training.",
    writer="plan",
)
RESOLVED = File(
    path="resolved.json",
    holds="Every option of the dataset with its value, section by section.",
    writer="plan",
    readers=("report",),
)

# qc

FILTERED = File(
    path="qc/filtered.h5ad",
    holds="AnnData of the kept cells and genes: raw counts, the obs columns of the input and the quality metrics.",
    writer="qc",
    readers=("setup", "programs", "de", "report", "across"),
)
LAYERS = File(
    path="qc/layers.h5ad",
    holds="AnnData of the same cells and genes without counts: the layers, obsp, varp and raw of the input.",
    writer="qc",
    readers=("annotate",),
)
CELLS = File(
    path="qc/cells.tsv.gz",
    holds="All cells: batch, total_counts (counts), n_genes_by_counts (genes), pct_counts_mt, pct_counts_ribo and "
    "pct_counts_hb (percent of the counts), doublet_score (0 to 1), predicted_doublet, kept, reason (of a removal).",
    writer="qc",
    readers=("report",),
    text=("cell", "batch", "reason"),
)
QC_SUMMARY = File(
    path="qc/summary.json",
    holds="Numbers of cells and genes before and after, thresholds, reasons of removal, warnings, settings.",
    writer="qc",
    readers=("report",),
)
VIOLINS = File(
    path="qc/violins.png",
    holds="Figure: each metric before and after, by batch, with the thresholds.",
    writer="qc",
)
SCATTER = File(
    path="qc/scatter.png",
    holds="Figure: genes against counts of each cell before and after, colored by mitochondrial share.",
    writer="qc",
)

# setup

COUNTS = File(
    path="setup/counts.h5ad",
    holds="AnnData of the cells and genes to model: raw counts, all obs columns, obs['split'] (train, validation or "
    "test) and uns['ldvae_setup'] (the registered columns).",
    writer="setup",
    readers=("train", "programs", "annotate", "de"),
)
GENES = File(
    path="setup/genes.tsv",
    holds="All genes: chosen, mean and variance of the counts, variance_norm, reason (of the choice).",
    writer="setup",
    text=("gene", "reason"),
)
SETUP_SUMMARY = File(
    path="setup/summary.json",
    holds="Numbers of cells in each part of the split and of genes, default_epochs of a training, registered "
    "columns, warnings, settings.",
    writer="setup",
    readers=("report",),
)

# train

MODEL = File(
    path="runs/{run}/model",
    holds="The trained model, for `LinearSCVI.load`.",
    writer="train",
    readers=("annotate", "de"),
    contents=("model.json", "model.safetensors", "history.csv"),
)
HISTORY = File(
    path="runs/{run}/history.csv",
    holds="By epoch: lr, kl_weight, and losses of the training and validation cells (nats per cell).",
    writer="train",
    readers=("report",),
)
METRICS = File(
    path="runs/{run}/metrics.json",
    holds="What the run is (options, seed), how well it fits held-out cells (nats per cell), time and memory.",
    writer="train",
    readers=("select", "report"),
)
FACTORS = File(
    path="runs/{run}/factors.npz",
    holds="Scores of all cells (n_obs, n_latent), loadings (n_vars, n_latent), offset, theta and mean expression of "
    "the genes, names of cells and genes.",
    writer="train",
    readers=("select", "programs", "annotate"),
)
PPC = File(
    path="runs/{run}/ppc.tsv",
    holds="Posterior predictive check, by gene and batch of the held-out cells: n_cells, observed and predicted mean "
    "(counts), variance (counts squared) and share of zeros.",
    writer="train",
    readers=("report",),
    text=("gene", "batch"),
)

# select

SELECT_RUNS = File(
    path="select/runs.tsv",
    holds="All runs: setting, seed, options in which they differ, metrics (nats per cell), time (s), outlier.",
    writer="select",
    readers=("report",),
    text=("run", "setting"),
)
SETTINGS = File(
    path="select/settings.tsv",
    holds="All settings: means and standard errors over their runs (nats per cell), reproducible_rank, stability "
    "(cosine), chosen.",
    writer="select",
    readers=("report",),
    text=("setting",),
)
CORRELATIONS = File(
    path="select/correlations.tsv",
    holds="By setting and rank: canonical correlation between two halves of the fits, with the range over splits.",
    writer="select",
    readers=("report",),
    text=("setting",),
)
BEST = File(
    path="select/best.json",
    holds="The chosen setting, its runs, those left out, the best run, the reproducible rank, and why.",
    writer="select",
    readers=("programs", "annotate", "de", "report"),
)
CHOSEN_PROGRAMS = File(
    path="select/programs.npz",
    holds="The programs of the chosen setting under the default options of their rotation, as `find_programs` returns "
    "them: the step programs takes them from here, or finds them anew under other options.",
    writer="select",
    readers=("programs",),
)
ERROR_FIGURE = File(path="select/error.svg", holds="Figure: held-out error and stability by setting.", writer="select")
CORRELATIONS_FIGURE = File(
    path="select/correlations.svg", holds="Figure: canonical correlations by rank.", writer="select"
)

# programs

LOADINGS = File(
    path="programs/loadings.tsv",
    holds="Genes by programs: change of the log of expected expression per standard deviation of the score.",
    writer="programs",
    readers=("annotate",),
    index="gene",
)
WEIGHTED = File(
    path="programs/weighted.tsv",
    holds="Genes by programs: loadings times the information that the counts hold of the gene.",
    writer="programs",
    index="gene",
)
SCORES = File(
    path="programs/scores.tsv.gz",
    holds="Cells by programs: scores, in standard deviations.",
    writer="programs",
    readers=("annotate",),
    index="cell",
)
CONSENSUS = File(
    path="programs/consensus.tsv",
    holds="By program and gene: loading with its interval over the fits (lower, upper), weighted.",
    writer="programs",
    readers=("report",),
    text=("gene",),
)
TOP_GENES = File(
    path="programs/top_genes.tsv",
    holds="The genes with the largest weighted loadings on each side of each program.",
    writer="programs",
    readers=("report",),
    text=("gene",),
)
PROGRAMS = File(
    path="programs/programs.tsv",
    holds="The programs: label, share of the variation, stability (cosine), numbers of fits and genes, technical flag, "
    "top genes, best association.",
    writer="programs",
    readers=("report", "across"),
    text=("label", "technical", "top_positive", "top_negative", "best_association", "opposite_association"),
    index="program",
)
STABILITY = File(
    path="programs/stability.tsv",
    holds="By program and run: cosine of the run's own version of the program to the consensus.",
    writer="programs",
    readers=("report",),
)
ASSOCIATIONS = File(
    path="programs/associations.tsv",
    holds="By program, obs column and level: effect (standard deviations, or a correlation), auc, p, padj, explained.",
    writer="programs",
    readers=("report",),
    text=("variable", "level"),
)
DONORS = File(
    path="programs/donors.tsv",
    holds="By program, cell type and pair of conditions, donors as replicates: effect (standard deviations) with its "
    "95 % interval, p, padj; the same for the share of cells among the highest tenth (high_effect, high_p, high_padj).",
    writer="programs",
    readers=("report",),
    text=("cell_type", "condition", "reference"),
)
DONOR_MEANS = File(
    path="programs/donor_means.tsv",
    holds="By cell type, condition, donor and program: n_cells, mean of the scores, share of high cells.",
    writer="programs",
    readers=("report",),
    text=("cell_type", "condition", "donor"),
)
ENRICHMENT = File(
    path="programs/enrichment.tsv",
    holds="By program, side and gene set: overlap (genes), odds_ratio, p, padj.",
    writer="programs",
    readers=("report",),
    text=("term", "library"),
)
RANKED_SETS = File(
    path="programs/ranked_sets.tsv",
    holds="By program and gene set, without a cutoff: n_term (measured genes of the set), t (positive where the set is "
    "higher than all other genes, by z of all_genes.tsv.gz), p, padj.",
    writer="programs",
    readers=("report",),
    text=("term", "library"),
)
GMT = File(path="programs/programs.gmt", holds="The programs' top genes as gene sets.", writer="programs")
STARCAT = File(
    path="programs/starcat.tsv", holds="The programs as a reference of starCAT: sides by genes.", writer="programs"
)
ALL_GENES = File(
    path="programs/all_genes.tsv.gz",
    holds="By program and measured gene, modeled or not: effect (change of the log of its expected share per standard "
    "deviation of the score), se and z.",
    writer="programs",
    readers=("report",),
    text=("gene",),
)
PROGRAMS_MODEL = File(
    path="programs/model.npz",
    holds="What scoring other cells with the programs needs.",
    writer="programs",
    readers=("project", "across"),
)
PROGRAMS_SUMMARY = File(
    path="programs/summary.json",
    holds="Rank, number of programs and of cells, runs, warnings, settings.",
    writer="programs",
    readers=("report",),
)

# annotate, de, project

ANNOTATED = File(
    path="annotated.h5ad",
    holds="AnnData: log-normalized X, layer counts; obsm X_ldvae, X_programs and X_umap; varm LDVAE_loadings and "
    "program_loadings; in obs the factors (Z_0, …), programs (P1, …) and clusters (leiden).",
    writer="annotate",
    readers=("de", "report"),
)
DE = File(
    path="de",
    holds="contrasts.tsv (one row for each contrast: groups, numbers of cells, genes called changed), summary.json "
    "(what was skipped and why, settings); for each contrast a table of the modeled genes (lfc_…: log2), one of all "
    "measured genes by ranks and, with replicates, pseudobulks (auc, log2fc, shares of cells with the gene, "
    "pseudobulk_lfc: log2), and a volcano plot.",
    writer="de",
    readers=("report",),
    contents=("contrasts.tsv", "summary.json"),
)
PROJECTED_SCORES = File(
    path="project/{projection}/scores.tsv.gz",
    holds="Cells by programs: scores, in standard deviations of the cells that the programs were made from.",
    writer="project",
    index="cell",
)
PROJECTED_CELLS = File(
    path="project/{projection}/cells.tsv.gz",
    holds="Cells: misfit (mean -log10 probability of the 30 most surprising counts), outside (more surprising than "
    "99 % of the cells that the programs were made from), and error_P1, … (standard deviation of each score).",
    writer="project",
    index="cell",
)
PROJECTED_SUMMARY = File(
    path="project/{projection}/summary.json",
    holds="Numbers of cells (outside, too) and genes, genes missing, share of each program that the genes found cover, "
    "settings.",
    writer="project",
)

# report

PAGE = File(path="report.html", holds="The report: one page that needs no network.", writer="report")
REPORT_SUMMARY = File(
    path="report.json", holds="What the index over all datasets shows.", writer="report", readers=("index",)
)
FIGURES = File(
    path="figures",
    holds="The figures of the report.",
    writer="report",
    contents=("umap.svg", "training_elbo.svg", "fit_mean.svg"),
)

# across: below the folder of all results, not of a dataset

META_PROGRAMS = File(
    path="across/meta_programs.tsv",
    holds="The meta-programs: label, n_datasets, datasets, similarity of the members (mean cosine), silhouette, "
    "shared, top genes.",
    writer="across",
    text=("label", "datasets", "top_positive", "top_negative"),
    index="meta",
)
META_MEMBERS = File(
    path="across/members.tsv",
    holds="Every program of every dataset: meta-program, sign, similarity to the other members and to the nearest "
    "other meta-program (cosines), silhouette, label.",
    writer="across",
    text=("dataset", "program", "meta", "label"),
)
META_LOADINGS = File(
    path="across/loadings.tsv",
    holds="By meta-program and gene: loading (change of the log of expected expression per standard deviation) with "
    "its 95 % interval over datasets (lower, upper), weighted.",
    writer="across",
    text=("meta", "gene"),
)
META_PRESENCE = File(
    path="across/presence.tsv",
    holds="Meta-programs by datasets: cosine of the meta-program with what the fits of the dataset span, 0 to 1.",
    writer="across",
    index="meta",
)
META_SIMILARITY = File(
    path="across/similarity.tsv",
    holds="Cosines between the weighted loadings of all programs, on the genes that both datasets model.",
    writer="across",
    index="program",
)
META_SCORES = File(
    path="across/scores.tsv.gz",
    holds="Cells by meta-programs: scores in standard deviations, 0 for the mean cell of the datasets; empty for "
    "meta-programs of another dataset alone.",
    writer="across",
    text=("dataset",),
    index="cell",
)
META_GMT = File(path="across/meta_programs.gmt", holds="The meta-programs' top genes as gene sets.", writer="across")
META_MODEL = File(
    path="across/model.npz", holds="What scoring other cells with the shared meta-programs needs.", writer="across"
)
META_DONORS = File(
    path="across/donors.tsv",
    holds="By meta-program, cell type and pair of conditions, donors as replicates: effect (standard deviations) with "
    "its 95 % interval, p, padj, design.",
    writer="across",
    text=("program", "cell_type", "condition", "reference", "design"),
)
META_DONOR_MEANS = File(
    path="across/donor_means.tsv",
    holds="By cell type, condition, donor and meta-program: dataset, n_cells, mean of the scores, share of high cells.",
    writer="across",
    text=("cell_type", "condition", "donor", "dataset", "program"),
)
ACROSS_PAGE = File(
    path="across/across.html", holds="What the datasets share: one page that needs no network.", writer="across"
)
ACROSS_FIGURES = File(
    path="across/figures",
    holds="The figures of the page.",
    writer="across",
    contents=("presence.svg", "similarity.svg", "network.svg"),
)
ACROSS_SUMMARY = File(
    path="across/summary.json",
    holds="Datasets, numbers of programs and meta-programs, findings and warnings in words, settings.",
    writer="across",
    readers=("index",),
)

INDEX = File(
    path="index.html",
    holds="The page that links to the reports of all datasets, in the folder above theirs.",
    writer="index",
)
INDEX_RECORD = File(
    path="index.json",
    holds="Names of the datasets in the order of index.html, and whether it leads to their comparison.",
    writer="index",
)
SUMMARY = File(
    path="summary.txt",
    holds="The end of the run in words, as a terminal shows it, beside index.html: what finished and what was found.",
    writer="index",
)
MULTIQC_QC = File(
    path="multiqc/ldvae_qc_mqc.tsv",
    holds="For MultiQC, beside index.html: cells, genes, runs and programs of each dataset.",
    writer="index",
)
MULTIQC_PROGRAMS = File(
    path="multiqc/ldvae_programs_mqc.tsv",
    holds="For MultiQC: the programs of all datasets with label, share of the variation and top genes.",
    writer="index",
)

#: Files by name, in small letters: what `read_results` calls them.
NAMED = {name.lower(): value for name, value in list(vars().items()) if isinstance(value, File)}
FILES = tuple(NAMED.values())

#: Files that a verb reads only where the options of the dataset call for them.
ONLY_IF: dict[tuple[str, File], Callable[[Dataset], bool]] = {
    ("annotate", MODEL): lambda dataset: dataset.annotate.normalized_layer,
    ("de", ANNOTATED): lambda dataset: dataset.compares_clusters,
    ("report", DE): lambda dataset: bool(dataset.de.contrasts),
    ("project", PROGRAMS_MODEL): lambda dataset: True,  # which may come packed in one file
    ("report", RESOLVED): lambda dataset: True,  # steps that are called by hand may have no config
}


def inputs(verb: str, dataset: Dataset | None = None) -> list[File]:
    """Files that a verb reads; all it may read where no dataset is given."""
    return [
        file
        for file in FILES
        if verb in file.readers and (dataset is None or (verb, file) not in ONLY_IF or ONLY_IF[verb, file](dataset))
    ]


def outputs(verb: str) -> list[File]:
    """Files that a verb writes."""
    return [file for file in FILES if file.writer == verb]


def paths(files: Sequence[File], runs: Sequence[str]) -> Iterator[str]:
    """Paths of files below the results folder, those of runs for each run."""
    for file in files:
        if "{run}" in file.path:
            yield from (file.path.replace("{run}", run) for run in runs)
        else:
            yield file.path


def layout(verbs: Sequence[str], runs: Sequence[str]) -> list[str]:
    """Paths of all files that verbs write, with those that a folder always holds."""
    files = [file for verb in verbs for file in outputs(verb)]
    inside = {path: file.contents for file in files for path in paths([file], runs)}
    return [f"{path}/{name}" if name else path for path, names in inside.items() for name in names or [""]]


#: Verbs whose --results is the folder of all datasets.
OVER_DATASETS = ("index", "across")

#: Verbs that the workflow runs for each dataset, in their order.
DATASET_VERBS = tuple(
    writer
    for writer in dict.fromkeys(file.writer for file in FILES)
    if writer not in ("plan", "project", *OVER_DATASETS)
)

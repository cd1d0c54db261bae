"""The sentences of the report: warnings in plain words, and the methods of this very run with their references."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ldvae.likelihoods import LIKELIHOODS
from ldvae.names import find_own
from ldvae.report.results import Results

CALLED = "is_de_fdr_"  # scvi-tools' column, followed by the rate


class Warning(NamedTuple):
    """Something the reader should know before believing a result, and the section that shows it."""

    text: str
    section: str


def warnings(results: Results) -> list[Warning]:
    """Everything about this dataset that calls for caution, in the order of the sections."""
    found = [
        *(Warning(text, "qc") for text in _about_cells(results)),
        *(Warning(text, "training") for text in _about_training(results)),
        *(Warning(text, "choice") for text in _about_choice(results)),
        *(Warning(text, "programs") for text in _about_programs(results)),
        *(Warning(text, "fit") for text in _about_fit(results)),
        *(Warning(text, "de") for text in _about_contrasts(results)),
    ]
    summaries = {"qc": results.qc, "programs": results.programs_summary, "de": results.de_summary}
    told = [(section, text) for section, summary in summaries.items() for text in summary.get("warnings", [])]
    told += [("qc", text) for text in results.setup.get("warnings", [])]
    for section, text in told:
        for file in results.qc.get("inputs", []):
            text = text.replace(str(file["path"]), PurePath(file["path"]).name)
        found.append(Warning(sentence(text), section))
    return list(dict.fromkeys(found))


def _about_cells(results: Results) -> Iterator[str]:
    qc = results.qc
    before, after, batches = qc["n_obs_before"], qc["n_obs_after"], qc.get("per_batch", {})
    if after < 500:
        yield f"Only {after:,} cells passed quality control: few for a model of this kind. Mistrust weak programs."
    if after < before / 2:
        yield f"Quality control removed {1 - after / before:.0%} of the cells."
    small = [f"{name} ({counts['after']})" for name, counts in batches.items() if counts["after"] < 50]
    if small and len(batches) > 1:
        yield f"Fewer than 50 cells are left of {listed(small)}."
    doublets = qc.get("doublets") or {}
    n, expected = doublets.get("n_predicted", 0), qc.get("settings", {}).get("expected_doublet_rate", 0.05)
    if doublets.get("mode") == "annotate" and n > expected * before:
        yield (
            f"{n:,} predicted doublets ({n / before:.1%} of the cells, more than the {expected:.1%} expected) were "
            "marked, not removed: they can look like a program that joins two cell types."
        )


def _about_training(results: Results) -> Iterator[str]:
    runs, best = results.chosen_runs, results.best_metrics
    unfinished = [run for run in runs if results.metrics[run].get("converged") is False]
    if unfinished:
        epochs = results.metrics[unfinished[0]]["epochs"]
        yield (
            f"Training stopped before it converged in {len(unfinished)} of {len(runs)} runs (after {epochs} epochs): "
            "raise max_epochs."
        )
    if collapsed := best.get("collapsed"):
        yield (
            f"{collapsed} of {results.best['n_latent']} factors collapsed in the best run: they say nothing about any "
            "cell, so fewer factors would do."
        )


def _about_choice(results: Results) -> Iterator[str]:
    best = results.best
    if best.get("outliers"):
        yield f"Left out of the programs because they fit worse than the others: {listed(best['outliers'])}."
    if len(results.chosen_runs) == 1:
        yield (
            "The programs come from one run: which of them would come back with another seed cannot be known. "
            "Several seeds would tell."
        )
    rank, n_latent = best.get("reproducible_rank"), best["n_latent"]
    if rank is not None and not math.isnan(rank) and rank >= n_latent:
        yield f"All {n_latent} directions of the model reproduce: there may be more to find. Try more factors."


def _about_programs(results: Results) -> Iterator[str]:
    programs, threshold = results.programs, results.best["threshold"]
    if len(results.chosen_runs) > 1:
        shaky = [f"{name} ({value:.2f})" for name, value in programs["stability"].items() if value < threshold]
        if shaky:
            yield f"Not the same from seed to seed (mean cosine below {threshold:g}): {listed(shaky)}."
    for name, reason in programs["technical"].items():
        if reason:
            yield f"{name} may be technical: {reason}."


def _about_fit(results: Results) -> Iterator[str]:
    if results.fit.empty:
        return
    fit = results.fit[results.fit["batch"] == "all"]
    yield from _about_infinite(fit)
    off = int(((fit["observed_zeros"] - fit["predicted_zeros"]).abs() > 0.1).sum())
    if off > 0.05 * len(fit):
        yield f"The model misses the share of zeros by more than 0.1 in {off:,} of {len(fit):,} genes."
    counts = fit.set_index("gene")["observed_mean"]
    ratio = fit.set_index("gene")["predicted_mean"] / counts
    shares = counts / counts.sum()
    missed = shares[((ratio < 0.5) | (ratio > 2)) & (shares > 0.02)].sort_values(ascending=False)
    if len(missed):
        genes = listed(f"{gene} ({share:.0%} of the counts of the modelled genes)" for gene, share in missed.items())
        yield (
            f"The model misses the mean of genes with many counts by more than twofold: {genes}. Starting at the mean "
            "profile (train: start_at_mean) or more epochs may help."
        )


def _about_contrasts(results: Results) -> Iterator[str]:
    if results.contrasts.empty:
        return
    few = results.contrasts[results.contrasts[["n1", "n2"]].min(axis=1) < 20]
    if len(few):
        yield f"Contrasts with fewer than 20 cells in a group: {listed(few['contrast'])}."
    if not results.contrasts["pseudobulk"].astype(bool).any():
        yield (
            "No contrast has a pseudobulk check (it takes replicates): the model treats cells as independent, so it is "
            "too sure of differences between donors."
        )


def counted(n: int, noun: str) -> str:
    """A number with its noun: "1 program", "2,000 programs"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _about_infinite(fit: pd.DataFrame) -> Iterator[str]:
    """Predictions that are not finite: the model must not be trusted there."""
    for quantity in ("mean", "variance", "zeros"):
        bad = int((~np.isfinite(fit[f"predicted_{quantity}"].to_numpy(dtype=float))).sum())
        if bad:
            where = f"{bad:,} of {len(fit):,} genes"
            yield f"The predicted {quantity} is not finite in {where}: do not trust this model there."


def end_of_run(summaries: list[dict[str, Any]], page: str) -> str:
    """What a person wants to know when a run ends, from what `render_report` says of each dataset.

    Parameters
    ----------
    summaries
        One for each dataset: the contents of report.json.
    page
        Path of the page that leads to all reports.

    Returns
    -------
    Lines for a terminal: the findings and warnings of each dataset, and what to open next.
    """
    lines = [f"Finished: {counted(len(summaries), 'dataset')}."]
    for one in summaries:
        found = counted(one["n_programs"], "program")
        seconds = sum(float(run.get("wall_s") or 0) for run in one["runs"])
        runs = f"{counted(len(one['runs']), 'run')}, {seconds / 60:.1f} min of training"
        lines.append(f"{one['dataset']}: {found} in {one['n_obs_after']:,} cells ({runs}).")
        lines += [f"  {program['program']}  {program['label'] or 'no label'}" for program in one["programs"]]
        if one["warnings"]:
            lines.append("  Read with care:")
            lines += [f"  - {text}" for text in one["warnings"][:5]]
            if (more := len(one["warnings"]) - 5) > 0:
                lines.append(f"  - {more} more in the report.")
    lines.append(f"Next: open {page} in a browser.")
    return "\n".join(lines)


def listed(items: Iterable[Any], most: int = 8) -> str:
    """Items as a phrase: "a, b and c", cut after `most`."""
    names = [str(item) for item in items]
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sentence(text: str) -> str:
    """Text with a capital first letter, unless it starts with the name of something, and a full stop."""
    text = text.strip()
    if text.split(" ", 1)[0].isalpha():
        text = text[:1].upper() + text[1:]
    return text + ("" if text.endswith((".", "!", "?")) else ".")


REFERENCES = {
    "ldvae": "Svensson V, Gayoso A, Yosef N, Pachter L. Interpretable factor models of single-cell RNA-seq via "
    "variational autoencoders. Bioinformatics 36, 3418–3421 (2020). doi:10.1093/bioinformatics/btaa169",
    "scvi": "Lopez R, Regier J, Cole MB, Jordan MI, Yosef N. Deep generative modeling for single-cell "
    "transcriptomics. Nature Methods 15, 1053–1058 (2018). doi:10.1038/s41592-018-0229-2",
    "scanpy": "Wolf FA, Angerer P, Theis FJ. SCANPY: large-scale single-cell gene expression data analysis. Genome "
    "Biology 19, 15 (2018). doi:10.1186/s13059-017-1382-0",
    "scrublet": "Wolock SL, Lopez R, Klein AM. Scrublet: computational identification of cell doublets in single-cell "
    "transcriptomic data. Cell Systems 8, 281–291 (2019). doi:10.1016/j.cels.2018.11.005",
    "seurat_v3": "Stuart T, Butler A, Hoffman P, et al. Comprehensive integration of single-cell data. Cell 177, "
    "1888–1902 (2019). doi:10.1016/j.cell.2019.05.031",
    "pearson_residuals": "Lause J, Berens P, Kobak D. Analytic Pearson residuals for normalization of single-cell "
    "RNA-seq UMI data. Genome Biology 22, 258 (2021). doi:10.1186/s13059-021-02451-7",
    "adam": "Kingma DP, Ba J. Adam: a method for stochastic optimization. ICLR (2015). arXiv:1412.6980",
    "varimax": "Rohe K, Zeng M. Vintage factor analysis with varimax performs statistical inference. Journal of the "
    "Royal Statistical Society B 85, 1037–1060 (2023). doi:10.1093/jrsssb/qkad029",
    "promax": "Hendrickson AE, White PO. Promax: a quick method for rotation to oblique simple structure. British "
    "Journal of Statistical Psychology 17, 65–70 (1964).",
    "cnmf": "Kotliar D, Veres A, Nagy MA, et al. Identifying gene expression programs of cell-type identity and "
    "cellular activity with single-cell RNA-seq. eLife 8, e43803 (2019). doi:10.7554/eLife.43803",
    "bh": "Benjamini Y, Hochberg Y. Controlling the false discovery rate: a practical and powerful approach to "
    "multiple testing. Journal of the Royal Statistical Society B 57, 289–300 (1995).",
    "umap": "McInnes L, Healy J, Melville J. UMAP: uniform manifold approximation and projection for dimension "
    "reduction. arXiv:1802.03426 (2018).",
    "leiden": "Traag VA, Waltman L, van Eck NJ. From Louvain to Leiden: guaranteeing well-connected communities. "
    "Scientific Reports 9, 5233 (2019). doi:10.1038/s41598-019-41695-z",
    "boyeau": "Boyeau P, Regier J, Gayoso A, Jordan MI, Lopez R, Yosef N. An empirical Bayes method for "
    "differential expression analysis of single cells with deep generative models. PNAS 120, e2209124120 "
    "(2023). doi:10.1073/pnas.2209124120",
    "deseq2": "Love MI, Huber W, Anders S. Moderated estimation of fold change and dispersion for RNA-seq data with "
    "DESeq2. Genome Biology 15, 550 (2014). doi:10.1186/s13059-014-0550-8",
    "pydeseq2": "Muzellec B, Teleńczuk M, Cabeli V, Andreux M. PyDESeq2: a python package for bulk RNA-seq "
    "differential expression analysis. Bioinformatics 39, btad547 (2023). "
    "doi:10.1093/bioinformatics/btad547",
    "snakemake": "Mölder F, Jablonski KP, Letcher B, et al. Sustainable data analysis with Snakemake. F1000Research "
    "10, 33 (2021). doi:10.12688/f1000research.29032.2",
    "anndata": "Virshup I, Rybakov S, Theis FJ, Angerer P, Wolf FA. anndata: access and store annotated data "
    "matrices. Journal of Open Source Software 9, 4371 (2024). doi:10.21105/joss.04371",
}


class Methods(NamedTuple):
    """Paragraphs of the methods, citing by number, and the references in that order."""

    paragraphs: list[str]
    references: list[str]


class _Citations:
    """Numbers references in the order in which they are cited."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def __call__(self, *keys: str) -> str:
        self.keys += [key for key in keys if key not in self.keys]
        return "[" + ", ".join(str(self.keys.index(key) + 1) for key in keys) + "]"


def methods(results: Results) -> Methods:
    """The methods of this run, from what its steps recorded; what was not done is not mentioned."""
    cite = _Citations()
    parts = (_methods_data, _methods_model, _methods_programs, _methods_rest)
    paragraphs = [" ".join(part(results, cite)) for part in parts]
    return Methods([text for text in paragraphs if text], [REFERENCES[key] for key in cite.keys])


def _methods_data(results: Results, cite: _Citations) -> Iterator[str]:
    qc, setup = results.qc, results.setup
    version, commit = (results.best_metrics.get("versions", {}).get(name, "") for name in ("ldvae", "commit"))
    yield (
        f"Raw counts of {qc['n_obs_before']:,} cells and {qc['n_vars_before']:,} genes were analysed with ldvae"
        f"{f' {version}' if version else ''}{f' (commit {commit[:10]})' if commit else ''}, which builds on scanpy "
        f"{cite('scanpy')} and anndata {cite('anndata')}."
    )
    limits = _thresholds(qc.get("thresholds", {}))
    kept = f"{qc['n_obs_after']:,} cells and {qc['n_vars_after']:,} genes"
    yield f"Cells were kept with {listed(limits, 12)}; {kept} passed." if limits else f"{kept} passed quality control."
    if n_mads := qc.get("settings", {}).get("n_mads"):
        yield f"Limits for outliers lie {n_mads:g} median absolute deviations from the median, batch by batch."
    doublets = qc.get("doublets") or {}
    if doublets.get("mode") in ("annotate", "filter"):
        where = " in each batch" if len(qc.get("per_batch", {})) > 1 else ""
        done = "removed" if doublets["mode"] == "filter" else "marked but kept"
        n = doublets.get("n_predicted", 0)
        yield f"Doublets were predicted with Scrublet {cite('scrublet')}{where} and {done} ({n:,} cells)."
    n_vars = f"{setup['n_vars']:,}"
    match setup.get("method"):
        case "seurat_v3":
            yield f"The {n_vars} most variable genes were chosen by the method of Seurat v3 {cite('seurat_v3')}."
        case "pearson_residuals":
            cited = cite("pearson_residuals")
            yield f"The {n_vars} most variable genes were chosen by their Pearson residuals {cited}."
        case "list":
            yield f"{n_vars} genes of a given list were used."
        case _:
            yield f"All {n_vars} genes were used."
    fields = setup.get("fields", {})
    strata = setup.get("settings", {}).get("stratify_by") or fields.get("labels_key") or fields.get("batch_key")
    how = f"at random, in equal shares of each level of {strata}" if strata else "at random"
    yield (
        f"The cells were split once {how}: {setup['n_train']:,} for training, {setup['n_validation']:,} for "
        f"validation, {setup['n_test']:,} for testing."
    )


METRICS = {
    "total_counts": "total counts",
    "n_genes_by_counts": "detected genes",
    "pct_counts_mt": "% mitochondrial counts",
    "pct_counts_ribo": "% ribosomal counts",
    "pct_counts_hb": "% haemoglobin counts",
    "doublet_score": "doublet score",
}


def _thresholds(thresholds: dict[str, dict[str, dict[str, float | None]]]) -> list[str]:
    """Limits in words: one number when all batches share it, the range over batches when not."""
    found = []
    for metric, batches in thresholds.items():
        for bound, word in (("lower", "at least"), ("upper", "at most")):
            limits = (limit.get(bound) for limit in batches.values())
            values = sorted({value for value in limits if value is not None and math.isfinite(value)})
            # One count at least is no choice: a cell without counts cannot be modelled.
            if not values or (metric == "total_counts" and values[-1] <= 1):
                continue
            ends = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (values[0], values[-1])]
            span = ends[0] if len(values) == 1 else f"{ends[0]} to {ends[1]} (by batch)"
            found.append(f"{word} {span} {METRICS.get(metric, metric)}")
    return found


def _methods_model(results: Results, cite: _Citations) -> Iterator[str]:
    metrics = results.best_metrics
    options = results.resolved.get("model", {}) | results.resolved.get("train", {}) | metrics.get("params", {})
    likelihood = options.get("gene_likelihood", "")
    text = f"A linearly decoded variational autoencoder {cite('ldvae', 'scvi')} with {results.best['n_latent']} factors"
    if likelihood:
        text += f" and {LIKELIHOODS[likelihood].sentence}"
    if options.get("n_hidden") and options.get("n_layers"):
        layers = "one hidden layer" if options["n_layers"] == 1 else f"{options['n_layers']} hidden layers"
        text += f" (encoder: {layers} of {options['n_hidden']} units)"
    batch = results.fields.get("batch_key")
    text += f" and {batch} as the batch covariate" if batch else ""
    torch = metrics.get("versions", {}).get("torch")
    yield f"{text} was fitted with Adam {cite('adam')}{f' in PyTorch {torch}' if torch else ''}{_training(options)}."
    runs = [results.metrics[run] for run in results.chosen_runs]
    epochs = sorted({run["epochs"] for run in runs})
    span = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    stopped = (
        ", ended by early stopping on the validation ELBO" if all(run.get("stopped_early") for run in runs) else ""
    )
    yield f"Training took {span} epochs{stopped}."
    if len(results.settings) > 1:
        yield f"{len(results.settings)} settings were compared over {len(results.runs)} runs."
        yield sentence(str(results.best["reason"]))


def _training(options: dict[str, Any]) -> str:
    details = []
    if options.get("lr"):
        schedule = {"cosine": ", falling to 0 as a cosine", "plateau": ", lowered on plateaus"}
        details.append(f"learning rate {options['lr']:g}{schedule.get(options.get('schedule', ''), '')}")
    if options.get("batch_size"):
        details.append(f"minibatches of {options['batch_size']} cells")
    if options.get("kl_warmup"):
        details.append(f"weight of KL rising from 0 to 1 over the first {options['kl_warmup']:.0%} of the epochs")
    return f" ({'; '.join(details)})" if details else ""


def _methods_programs(results: Results, cite: _Citations) -> Iterator[str]:
    summary, n = results.programs_summary, len(results.programs)
    n_runs = len(summary.get("runs", results.chosen_runs))
    averaged = f"averaged over {n_runs} runs that differ in their seed, " if n_runs > 1 else ""
    if n_runs > 1:
        yield f"Factors differ from seed to seed, so gene programs were made by consensus (compare {cite('cnmf')})."
    yield (
        "Loadings were centred under the mean expression and weighted by the root of their Fisher information; their "
        "products with the centred scores, which no rotation of the factors changes, were "
        f"{averaged}cut to rank {summary.get('rank', n)} and rotated to simple structure: {_rotation(summary, cite)}. "
        f"This gave {n} program{'s' if n != 1 else ''}{', an intercept included' if summary.get('intercept') else ''}."
    )
    yield (
        "A score has unit variance; a loading is the log fold change per standard deviation of the score. Genes are "
        "ranked by loading times root information."
    )
    if not results.enrichment.empty:
        libraries = listed(sorted(results.enrichment["library"].astype(str).unique()))
        yield f"Their genes were tested for enrichment of the sets in {libraries} by the hypergeometric test of SciPy."
    if not results.associations.empty:
        yield f"p values were adjusted by the method of Benjamini and Hochberg {cite('bh')}."


def _rotation(summary: dict[str, Any], cite: _Citations) -> str:
    """What the rotation of the programs maximised, with the options that ran."""
    settings = summary.get("settings", {})
    balance, power = settings.get("balance"), settings.get("power")
    of = "the scores" if balance == 0 else "the scores and the loadings"
    text = f"the sum over factors of fourth powers, relative to the squared length of a row, was maximised over {of}"
    if balance:
        text += f" (weight of the loadings {balance:g})"
    text += f", a criterion of the family of varimax {cite('varimax')}"
    if power is not None and power > 1:
        return f"{text}, followed by a promax rotation of power {power:g} {cite('promax')}"
    return text if power is None else f"{text}, without an oblique step"


def fdr_of(table: pd.DataFrame) -> float | None:
    """The false discovery rate at which a differential expression table calls genes, from its column's name."""
    rates = [str(name).removeprefix(CALLED) for name in table if str(name).startswith(CALLED)]
    return float(rates[0]) if rates else None


def _methods_rest(results: Results, cite: _Citations) -> Iterator[str]:
    if results.umap is not None:
        text = f"Cells are shown by UMAP {cite('umap')} of the latent space"
        yield text + (
            f" and grouped by Leiden clustering {cite('leiden')}."
            if find_own("leiden", results.obs) in results.obs
            else "."
        )
    if not results.contrasts.empty:
        deltas = {float(table["delta"].iloc[0]) for table in results.de.values() if "delta" in table and len(table)}
        effect = f" as the probability of a log2 fold change beyond {deltas.pop():g}" if len(deltas) == 1 else ""
        n, fdr = len(results.contrasts), min((rate for rate in map(fdr_of, results.de.values()) if rate), default=0.05)
        yield (
            f"Differential expression was read off the posterior of run {results.best['run']}{effect} "
            f"{cite('scvi', 'boyeau')} in {n} "
            f"contrast{'s' if n > 1 else ''}; genes were called at an expected false discovery rate of {fdr:.0%}."
        )
        if "n_ranked" in results.contrasts:
            yield "All measured genes were compared by the Wilcoxon rank-sum test beside it."
        if results.contrasts["pseudobulk"].astype(bool).any():
            yield (
                "As a check, counts were summed per replicate and group and tested with PyDESeq2 "
                f"{cite('pydeseq2', 'deseq2')}."
            )
    if results.seconds:
        yield f"The steps were run by Snakemake {cite('snakemake')}."

"""The sentences of the report: warnings in plain words, and the methods of this very run with their references."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from ldvae.report.results import Results

UNSTABLE = 0.9  # cosine with the consensus below which a program is not the same from seed to seed


class Warning(NamedTuple):
    """Something the reader should know before believing a result, and the section that shows it."""

    text: str
    section: str


def warnings(results: Results) -> list[Warning]:
    """Everything about this dataset that calls for caution, the gravest of each section first."""
    found = [*_about_cells(results), *_about_training(results), *_about_programs(results), *_about_fit(results)]
    found += _about_contrasts(results)
    for section, texts in (
        ("qc", results.qc.get("warnings", [])),
        ("qc", results.setup.get("warnings", [])),
        ("programs", results.programs_summary.get("warnings", [])),
    ):
        found += [Warning(sentence(str(text)), section) for text in texts]
    return list(dict.fromkeys(found))


def _about_cells(results: Results) -> list[Warning]:
    qc, found = results.qc, []
    before, after = qc["n_obs_before"], qc["n_obs_after"]
    if after < 500:
        found.append(
            Warning(
                f"Only {after:,} cells passed quality control: few for a model of this kind; read weak programs with care.",
                "qc",
            )
        )
    if before and after < before / 2:
        found.append(Warning(f"Quality control removed {1 - after / before:.0%} of the cells.", "qc"))
    small = {name: counts["after"] for name, counts in qc.get("per_batch", {}).items() if counts["after"] < 50}
    if small and len(qc["per_batch"]) > 1:
        found.append(
            Warning(f"Batches with fewer than 50 cells left: {listed(f'{k} ({v})' for k, v in small.items())}.", "qc")
        )
    doublets = qc.get("doublets") or {}
    if doublets.get("mode") == "annotate" and doublets.get("n_predicted"):
        n = doublets["n_predicted"]
        found.append(
            Warning(
                f"{n:,} predicted doublets ({n / max(before, 1):.1%} of the cells) were marked, not removed: they can look like a program that joins two cell types.",
                "qc",
            )
        )
    return found


def _about_training(results: Results) -> list[Warning]:
    found = []
    runs = results.chosen_runs
    unfinished = [run for run in runs if results.metrics[run].get("converged") is False]
    if unfinished:
        epochs = results.metrics[unfinished[0]].get("epochs")
        found.append(
            Warning(
                f"Training stopped before it converged in {len(unfinished)} of {len(runs)} runs (after {epochs} epochs): raise train.max_epochs.",
                "training",
            )
        )
    best = results.best_metrics
    if best.get("collapsed"):
        n, of = best["collapsed"], len(best.get("kl_per_factor", [])) or best.get("params", {}).get("n_latent")
        found.append(
            Warning(
                f"{n} of {of} factors collapsed in the best run: they say nothing about any cell, so fewer factors would do.",
                "training",
            )
        )
    if results.best.get("outliers"):
        found.append(
            Warning(
                f"Left out of the programs because they fit worse than the others: {listed(results.best['outliers'])}.",
                "choice",
            )
        )
    return found


def _about_programs(results: Results) -> list[Warning]:
    found, programs = [], results.programs
    if len(results.chosen_runs) == 1:
        found.append(
            Warning(
                "The programs come from one run: which of them would come back with another seed cannot be known. Several seeds (sweep) would tell.",
                "choice",
            )
        )
    else:
        shaky = programs.index[programs["stability"] < UNSTABLE]
        if len(shaky):
            named = listed(f"{name} ({programs.at[name, 'stability']:.2f})" for name in shaky)
            found.append(
                Warning(f"Not the same from seed to seed (mean cosine below {UNSTABLE}): {named}.", "programs")
            )
    rank, n_latent = results.best.get("reproducible_rank"), results.best.get("n_latent")
    if rank is not None and n_latent is not None and not math.isnan(rank) and rank >= n_latent:
        found.append(
            Warning(
                f"All {n_latent} directions of the model reproduce: there may be more to find, so try more factors.",
                "choice",
            )
        )
    for name, reason in programs["technical"].items():
        if reason:
            found.append(
                Warning(
                    f"{name} may be technical: it {reason}."
                    if str(reason).startswith("follows")
                    else f"{name} may be technical: {reason}.",
                    "programs",
                )
            )
    return found


def _about_fit(results: Results) -> list[Warning]:
    fit = results.fit
    if fit.empty:
        return []
    fit = fit[fit["batch"] == "all"]
    off = int(((fit["observed_zeros"] - fit["predicted_zeros"]).abs() > 0.1).sum())
    if off > 0.05 * len(fit):
        return [
            Warning(f"The model misses the share of zeros by more than 0.1 in {off:,} of {len(fit):,} genes.", "fit")
        ]
    return []


def _about_contrasts(results: Results) -> list[Warning]:
    if results.contrasts.empty:
        return []
    table = results.contrasts
    few = table[table[["n1", "n2"]].min(axis=1) < 20]
    found = []
    if len(few):
        found.append(Warning(f"Contrasts with fewer than 20 cells in a group: {listed(few['contrast'])}.", "de"))
    if not table["pseudobulk"].astype(bool).any():
        found.append(
            Warning(
                "No contrast has a pseudobulk check (it takes replicates): the model's calls treat cells as independent and are too sure of themselves across donors.",
                "de",
            )
        )
    return found


def listed(items: Iterable[Any], most: int = 8) -> str:
    """Items as a phrase: "a, b and c", cut after `most`."""
    names = [str(item) for item in items]
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def sentence(text: str) -> str:
    """Text with a capital first letter and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


# ---------------------------------------------------------------------------------------------- methods


REFERENCES = {
    "ldvae": "Svensson V, Gayoso A, Yosef N, Pachter L. Interpretable factor models of single-cell RNA-seq via variational autoencoders. Bioinformatics 36, 3418–3421 (2020). doi:10.1093/bioinformatics/btaa169",
    "scvi": "Lopez R, Regier J, Cole MB, Jordan MI, Yosef N. Deep generative modeling for single-cell transcriptomics. Nature Methods 15, 1053–1058 (2018). doi:10.1038/s41592-018-0229-2",
    "scanpy": "Wolf FA, Angerer P, Theis FJ. SCANPY: large-scale single-cell gene expression data analysis. Genome Biology 19, 15 (2018). doi:10.1186/s13059-017-1382-0",
    "scrublet": "Wolock SL, Lopez R, Klein AM. Scrublet: computational identification of cell doublets in single-cell transcriptomic data. Cell Systems 8, 281–291 (2019). doi:10.1016/j.cels.2018.11.005",
    "seurat_v3": "Stuart T, Butler A, Hoffman P, et al. Comprehensive integration of single-cell data. Cell 177, 1888–1902 (2019). doi:10.1016/j.cell.2019.05.031",
    "adam": "Kingma DP, Ba J. Adam: a method for stochastic optimization. ICLR (2015). arXiv:1412.6980",
    "varimax": "Rohe K, Zeng M. Vintage factor analysis with varimax performs statistical inference. Journal of the Royal Statistical Society B 85, 1037–1060 (2023). doi:10.1093/jrsssb/qkad029",
    "cnmf": "Kotliar D, Veres A, Nagy MA, et al. Identifying gene expression programs of cell-type identity and cellular activity with single-cell RNA-seq. eLife 8, e43803 (2019). doi:10.7554/eLife.43803",
    "gseapy": "Fang Z, Liu X, Peltz G. GSEApy: a comprehensive package for performing gene set enrichment analysis in Python. Bioinformatics 39, btac757 (2023). doi:10.1093/bioinformatics/btac757",
    "bh": "Benjamini Y, Hochberg Y. Controlling the false discovery rate: a practical and powerful approach to multiple testing. Journal of the Royal Statistical Society B 57, 289–300 (1995).",
    "umap": "McInnes L, Healy J, Melville J. UMAP: uniform manifold approximation and projection for dimension reduction. arXiv:1802.03426 (2018).",
    "leiden": "Traag VA, Waltman L, van Eck NJ. From Louvain to Leiden: guaranteeing well-connected communities. Scientific Reports 9, 5233 (2019). doi:10.1038/s41598-019-41695-z",
    "boyeau": "Boyeau P, Regier J, Gayoso A, Jordan MI, Lopez R, Yosef N. An empirical Bayes method for differential expression analysis of single cells with deep generative models. PNAS 120, e2209124120 (2023). doi:10.1073/pnas.2209124120",
    "deseq2": "Love MI, Huber W, Anders S. Moderated estimation of fold change and dispersion for RNA-seq data with DESeq2. Genome Biology 15, 550 (2014). doi:10.1186/s13059-014-0550-8",
    "pydeseq2": "Muzellec B, Teleńczuk M, Cabeli V, Andreux M. PyDESeq2: a python package for bulk RNA-seq differential expression analysis. Bioinformatics 39, btad547 (2023). doi:10.1093/bioinformatics/btad547",
    "snakemake": "Mölder F, Jablonski KP, Letcher B, et al. Sustainable data analysis with Snakemake. F1000Research 10, 33 (2021). doi:10.12688/f1000research.29032.2",
    "anndata": "Virshup I, Rybakov S, Theis FJ, Angerer P, Wolf FA. anndata: access and store annotated data matrices. Journal of Open Source Software 9, 4371 (2024). doi:10.21105/joss.04371",
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
        for key in keys:
            if key not in self.keys:
                self.keys.append(key)
        return "[" + ", ".join(str(self.keys.index(key) + 1) for key in keys) + "]"


def methods(results: Results) -> Methods:
    """The methods of this run, from what its steps recorded; what was not done is not mentioned."""
    cite = _Citations()
    paragraphs = [
        _methods_data(results, cite),
        _methods_model(results, cite),
        _methods_programs(results, cite),
        _methods_rest(results, cite),
    ]
    return Methods(paragraphs, [REFERENCES[key] for key in cite.keys])


def _methods_data(results: Results, cite: _Citations) -> str:
    qc, setup = results.qc, results.setup
    version = results.best_metrics.get("versions", {}).get("ldvae", "")
    text = f"Raw counts of {qc['n_obs_before']:,} cells and {qc['n_vars_before']:,} genes were analysed with the ldvae workflow"
    text += f" (version {version})" if version else ""
    text += f" on top of scanpy {cite('scanpy')} and anndata {cite('anndata')}."
    limits = _thresholds(qc.get("thresholds", {}))
    kept = f"{qc['n_obs_after']:,} cells and {qc['n_vars_after']:,} genes"
    text += (
        f" Cells were kept with {listed(limits, 12)}; {kept} passed." if limits else f" {kept} passed quality control."
    )
    doublets = qc.get("doublets") or {}
    if doublets.get("mode") in ("annotate", "filter"):
        done = "removed" if doublets["mode"] == "filter" else "marked but kept"
        batchwise = " in each batch" if len(qc.get("per_batch", {})) > 1 else ""
        text += f" Doublets were predicted with Scrublet {cite('scrublet')}{batchwise} and {done} ({doublets.get('n_predicted', 0):,} cells)."
    method, n = setup.get("method", ""), f"{setup['n_vars']:,}"
    if method == "seurat_v3":
        text += (
            f" The {n} most variable genes were chosen from the counts by the method of Seurat v3 {cite('seurat_v3')}."
        )
    elif method == "all":
        text += f" All {n} genes were used."
    else:
        text += f" {n} genes were used" + (f" (chosen by: {method})." if method else ".")
    text += f" Cells were split once, at random, into {setup['n_train']:,} for training, {setup['n_validation']:,} for validation and {setup['n_test']:,} for testing."
    return text


def _thresholds(thresholds: dict[str, dict[str, dict[str, float | None]]]) -> list[str]:
    """Limits in words: one number when all batches share it, the range over batches when not."""
    names = {
        "total_counts": "total counts",
        "n_genes_by_counts": "detected genes",
        "pct_counts_mt": "% mitochondrial counts",
    }
    names |= {
        "pct_counts_ribo": "% ribosomal counts",
        "pct_counts_hb": "% haemoglobin counts",
        "doublet_score": "doublet score",
    }
    found = []
    for metric, batches in thresholds.items():
        for bound, word in (("lower", "at least"), ("upper", "at most")):
            # One count at least is no choice: an empty droplet cannot be modelled.
            if (
                metric == "total_counts"
                and bound == "lower"
                and all((b.get(bound) or 0) <= 1 for b in batches.values())
            ):
                continue
            values = sorted(
                {v for limit in batches.values() if (v := limit.get(bound)) is not None and math.isfinite(v)}
            )
            if values:
                span = (
                    f"{values[0]:,.4g}"
                    if len(values) == 1
                    else f"{values[0]:,.4g} to {values[-1]:,.4g}, depending on the batch,"
                )
                found.append(f"{word} {span} {names.get(metric, metric)}")
    return found


LIKELIHOODS = {"nb": "negative binomial", "zinb": "zero-inflated negative binomial", "poisson": "Poisson"}


def _methods_model(results: Results, cite: _Citations) -> str:
    metrics = results.best_metrics
    model = results.resolved.get("model", {}) | metrics.get("params", {})
    train = results.resolved.get("train", {}) | metrics.get("params", {})
    likelihood = LIKELIHOODS.get(model.get("gene_likelihood", ""), model.get("gene_likelihood", ""))
    text = f"A linearly decoded variational autoencoder (LDVAE) {cite('ldvae', 'scvi')} with {results.best['n_latent']} factors"
    text += f" and a {likelihood} likelihood" if likelihood else ""
    if model.get("n_hidden") and model.get("n_layers"):
        text += f" (encoder: {model['n_layers']} hidden layer{'s' if model['n_layers'] > 1 else ''} of {model['n_hidden']} units)"
    n_settings = len(results.settings)
    text += (
        f" was fitted in PyTorch {metrics.get('versions', {}).get('torch', '')}".rstrip() + f" with Adam {cite('adam')}"
    )
    details = []
    if train.get("lr"):
        details.append(
            f"learning rate {train['lr']:g}"
            + (f" with a {train['schedule']} schedule" if train.get("schedule") else "")
        )
    if train.get("batch_size"):
        details.append(f"minibatches of {train['batch_size']} cells")
    if train.get("kl_warmup"):
        details.append(
            f"the weight of the KL term rising from 0 to 1 over the first {train['kl_warmup']:.0%} of the epochs"
        )
    text += f" ({', '.join(details)})" if details else ""
    batch = results.qc.get("batch_key") or results.setup.get("batch_key")
    text += f", with {batch} as the batch covariate" if batch else ", without a batch covariate"
    epochs = sorted({results.metrics[run]["epochs"] for run in results.chosen_runs})
    span = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    stopped = sum(bool(results.metrics[run].get("stopped_early")) for run in results.chosen_runs)
    text += (
        f". Training took {span} epochs"
        + (", ended by early stopping on the validation ELBO" if stopped == len(results.chosen_runs) else "")
        + "."
    )
    if n_settings > 1:
        text += f" {n_settings} settings and {len(results.runs)} runs were compared. {sentence(results.best['reason'])}"
    return text


def _methods_programs(results: Results, cite: _Citations) -> str:
    summary, n_runs = results.programs_summary, len(results.programs_summary.get("runs", results.chosen_runs))
    n = len(results.programs)
    if n_runs > 1:
        text = f"Gene programs are the consensus of {n_runs} runs that differ in their seed (in the spirit of {cite('cnmf')}, but without matching factors): "
        text += "loadings in gauge (mean zero under the mean expression) and weighted by root Fisher information were multiplied with the centred scores to contributions, "
        text += f"which do not depend on the rotation of the factors, averaged over runs, cut to rank {summary.get('rank', n)}"
    else:
        text = "Gene programs were made from one run: loadings in gauge (mean zero under the mean expression) and weighted by root Fisher information were multiplied with the centred "
        text += f"scores to contributions, cut to rank {summary.get('rank', n)}"
    text += f" and rotated to simple structure by varimax {cite('varimax')}"
    text += f", which gave {n} programs" + (" (with an intercept)." if summary.get("intercept") else ".")
    text += " Scores have unit variance; a loading is the log fold change per standard deviation of the score. Genes are ranked by loading × root information."
    if not results.enrichment.empty:
        libraries = listed(sorted(results.enrichment["library"].astype(str).unique()))
        text += f" Top genes were tested for enrichment against {libraries} with GSEApy {cite('gseapy')}."
    if not results.associations.empty or not results.enrichment.empty:
        text += f" p values were adjusted by the method of Benjamini and Hochberg {cite('bh')}."
    return text


def _methods_rest(results: Results, cite: _Citations) -> str:
    text = ""
    if results.umap is not None:
        text += f"Cells are shown by UMAP {cite('umap')} of the latent space"
        text += f" and grouped by Leiden clustering {cite('leiden')}. " if "leiden" in results.obs else ". "
    if not results.contrasts.empty:
        de = results.resolved.get("de", {})
        mode = de.get("mode", "change") if isinstance(de, dict) else "change"
        delta = {float(table["delta"].iloc[0]) for table in results.de.values() if "delta" in table and len(table)}
        effect = (
            f" of an effect above {next(iter(delta)):g} in log2 fold change"
            if len(delta) == 1 and mode == "change"
            else ""
        )
        text += f"Differential expression was computed from the model's posterior{effect} {cite('scvi', 'boyeau')} for {len(results.contrasts)} contrast{'s' if len(results.contrasts) > 1 else ''}, "
        text += "genes being called at an expected false discovery rate of 5 %. "
        if results.contrasts["pseudobulk"].astype(bool).any():
            text += f"Where there were replicates, counts were summed per replicate and tested with PyDESeq2 {cite('pydeseq2', 'deseq2')}. "
    text += f"The steps ran under Snakemake {cite('snakemake')}." if results.seconds else ""
    return text.strip()

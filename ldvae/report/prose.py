"""The sentences of the report: what was found and what was not, and what calls for caution, in plain words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ldvae.errors import counted, listed
from ldvae.programs.donors import ALL_CELLS
from ldvae.programs.find import DISAGREES
from ldvae.report.results import Results

OPPOSITE = 0.2  # AUC of a group of cells below which a program is said to stand against it


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
        *(Warning(text, "programs") for text in _about_design(results)),
        *(Warning(text, "programs") for text in _about_programs(results)),
        *(Warning(text, "fit") for text in _about_fit(results)),
        *(Warning(text, "de") for text in _about_contrasts(results)),
    ]
    summaries = {"qc": results.qc, "programs": results.programs_summary, "de": results.de_summary}
    told = [(section, text) for section, summary in summaries.items() for text in summary.get("warnings", [])]
    told += [("conditions", text) for text in results.programs_summary.get("left_out", [])]
    told += [("qc", text) for text in results.setup.get("warnings", [])]
    for section, text in told:
        for file in results.qc.get("inputs", []):
            text = text.replace(str(file["path"]), PurePath(file["path"]).name)
        found.append(Warning(sentence(text), section))
    once: dict[str, Warning] = {}
    for warning in found:  # two steps may say the same: it stands with the first
        once.setdefault(warning.text, warning)
    return list(once.values())


def _about_cells(results: Results) -> Iterator[str]:
    qc = results.qc
    before, after, batches = qc["n_obs_before"], qc["n_obs_after"], qc.get("per_batch", {})
    if after < 500:
        yield f"Only {after:,} cells passed quality control: few for this model. Do not trust weak programs."
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
    if (collapsed := best.get("collapsed", 0)) > results.best["n_latent"] / 2:
        yield (
            f"{collapsed} of {results.best['n_latent']} factors collapsed in the best run: they carry no information "
            f"about the "
            "cells. Some are expected if there are more factors than programs; so many can mean that the training was "
            "too short or the KL warm-up too fast."
        )


def _about_choice(results: Results) -> Iterator[str]:
    best = results.best
    if best.get("outliers"):
        yield f"Left out of the programs because they fit worse than the others: {listed(best['outliers'])}."
    told = " ".join(results.programs_summary.get("warnings", []))  # of the step, which may say the same
    if len(results.chosen_runs) == 1 and "One fit:" not in told:
        yield (
            "The programs come from one run, which cannot show whether other seeds find them. Train several seeds to "
            "know."
        )
    rank, n_latent = best.get("reproducible_rank"), best["n_latent"]
    if rank is not None and not math.isnan(rank) and rank >= n_latent and "may be more programs" not in told:
        yield f"All {n_latent} directions of the model reproduce: there may be more programs. Try more factors."


def _about_programs(results: Results) -> Iterator[str]:
    programs, threshold = results.programs, results.best["threshold"]
    if len(results.chosen_runs) > 1:
        shaky = [f"{name} ({value:.2f})" for name, value in programs["stability"].items() if value < threshold]
        if shaky:
            yield f"Not the same from seed to seed (mean cosine below {threshold:g}): {listed(shaky)}."
    for name, reason in programs["technical"].items():
        if reason:
            yield f"{name} may be technical: {reason}."


def _about_design(results: Results) -> Iterator[str]:
    """A batch that is the same as the condition: the model cannot tell one from the other."""
    batch = str(results.fields.get("batch_key") or "")
    compared = set(results.contrasts["column"]) if "column" in results.contrasts else set()
    condition = results.programs_summary.get("settings", {}).get("condition_key")
    for name in sorted({*compared, *([condition] if condition else [])} - {batch}):
        if batch not in results.obs or name not in results.obs:
            continue
        table = pd.crosstab(results.obs[batch], results.obs[name]).to_numpy()
        if (
            min(table.shape) > 1
            and (table.max(axis=1).sum() >= 0.99 * table.sum())
            and (table.max(axis=0).sum() >= 0.99 * table.sum())
        ):
            yield (
                f"The batch ({batch}) divides the cells as {name} does: the model treats differences between the "
                f"levels of {name} as batch effects, and the programs show little of them. For programs that follow "
                f"{name}, fit without this batch_key."
            )


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
        genes = listed(f"{gene} ({share:.0%} of the counts of the modeled genes)" for gene, share in missed.items())
        yield (
            f"The model misses the mean of genes with many counts by more than twofold: {genes}.{_what_helps(results)}"
        )


def _what_helps(results: Results) -> str:
    """What may bring abundant genes to their mean: only what this training has not done already.

    At torch's beta2 of 0.999 abundant genes stay below their mean; at 0.99 a start at the mean changes nothing more.
    """
    best = results.best_metrics
    options = results.resolved.get("train", {}) | best.get("params", {})
    if (options.get("beta2") or 0) > 0.99 and not options.get("start_at_mean"):
        return " beta2 0.99 (train: beta2) or a start at the mean profile (train: start_at_mean) may help."
    if best.get("epochs", 0) >= best.get("max_epochs", np.inf):
        return " More epochs (train: max_epochs) may help."
    return ""


def _about_contrasts(results: Results) -> Iterator[str]:
    if results.contrasts.empty:
        return
    few = results.contrasts[results.contrasts[["n1", "n2"]].min(axis=1) < 20]
    if len(few):
        yield f"Contrasts with fewer than 20 cells in a group: {listed(few['contrast'])}."
    if not results.contrasts["pseudobulk"].astype(bool).any():
        yield (
            "No contrast has a pseudobulk check (it needs replicates): the model treats cells as independent, so it "
            "overstates the evidence for differences between donors."
        )


def _about_infinite(fit: pd.DataFrame) -> Iterator[str]:
    """Predictions that are not finite: the model must not be trusted there."""
    for quantity in ("mean", "variance", "zeros"):
        bad = int((~np.isfinite(fit[f"predicted_{quantity}"].to_numpy(dtype=float))).sum())
        if bad:
            where = f"{bad:,} of {len(fit):,} genes"
            yield f"The predicted {quantity} is not finite in {where}: do not trust this model there."


class Findings(NamedTuple):
    """What was found, and what was looked for and not found, in plain words, each with the section that shows it."""

    found: list[Warning]
    not_found: list[Warning]


def findings(results: Results) -> Findings:
    """The answers of this run in plain words, the strongest first; the page and the terminal say the same."""
    parts = [
        _found_programs(results),
        _found_conditions(results),
        _found_contrasts(results),
        _found_gene_sets(results),
        _found_doubts(results),
    ]
    return Findings([one for part in parts for one in part.found], [one for part in parts for one in part.not_found])


def short_name(results: Results, program: str) -> str:
    """A program with what names it: "P2 (CD14+ Monocytes)", "P7 (MKI67, TOP2A, CENPF)"."""
    label = str(results.programs.at[program, "label"])
    return f"{program} ({headline(label) or label})" if label else program


def other_side(program: pd.Series) -> str:
    """The group of cells in which a program is low (AUC below 0.2), such as "CD14+ Monocytes"; empty where none is.

    A group whose name is a number, as those of clusters are, is told with its column: "those with louvain = 2".
    """
    found = re.fullmatch(
        r"([^=]*) = (.*) \(AUC (\d\.\d+)(?:, \d+ cells)?\)", str(program.get("opposite_association", ""))
    )
    if not found or float(found[3]) >= OPPOSITE:
        return ""
    column, group = found[1], found[2]
    return f"those with {column} = {group}" if re.fullmatch(r"[\d.]+", group) else group


def headline(label: str) -> str:
    """The cell type or gene set in a label of a program ("B cells: MS4A1, CD79A, CD74"); empty for genes alone."""
    name, mark, _ = label.rpartition(": ")
    return name if mark else ""


def _found_programs(results: Results) -> Findings:
    programs, n = results.programs, len(results.programs)
    first = programs.index[0]
    text = f"{counted(n, 'program')} in {counted(results.qc['n_obs_after'], 'cell')}"
    largest = f"The largest, {short_name(results, first)}, has {programs.at[first, 'share']:.0%} of the contribution"
    text += f": {short_name(results, first)}" if n == 1 else f". {largest}"
    text += f"; its scores are low in {other}." if (other := other_side(programs.loc[first])) else "."
    found, missing = [Warning(text, "programs")], []
    named = [name for name, label in programs["label"].items() if headline(str(label))]
    if named:
        names = listed(_names(results, named), 12)
        text = f"Named after cells in which score and genes are high, or after enriched gene sets: {names}."
        found.append(Warning(text, "programs"))
    if unnamed := [name for name in programs.index if name not in named]:
        own = "its" if len(unnamed) == 1 else "their"
        text = f"No group of cells and no gene set matches {listed(_names(results, unnamed), 12)}: read {own} genes."
        missing.append(Warning(text, "programs"))
    return Findings(found, missing)


def _names(results: Results, programs: Iterable[str]) -> list[str]:
    return [short_name(results, name) for name in programs]


def _found_conditions(results: Results) -> Findings:
    """Programs between conditions: with donors as units where there are any, else as effects alone."""
    table = results.donors
    if table.empty:
        return Findings(_condition_effects(results), _why_no_donors(results))
    found, missing = [], []
    significant = table[table["padj"] < 0.05]
    kinds = sorted(table["cell_type"].unique())
    strength = significant["effect"].abs().groupby(significant["program"]).max().sort_values(ascending=False)
    for program in strength.index[:6]:
        for (condition, reference), own in significant[significant["program"] == program].groupby(
            ["condition", "reference"], sort=False
        ):
            tested = table[
                (table["program"] == program) & (table["condition"] == condition) & (table["reference"] == reference)
            ]
            text = f"{short_name(results, program)} is {_difference(own, tested, condition, reference)}"
            found.append(Warning(text, "conditions"))
    if (more := len(strength) - 6) > 0:
        text = f"{counted(more, 'more program')} {'differs' if more == 1 else 'differ'} less."
        found.append(Warning(text, "conditions"))
    if same := [name for name in results.programs.index if name not in strength.index]:
        least = table["padj"].min()
        names = listed(_names(results, same), 15)
        text = (
            f"With donors as replicates, no difference between conditions was found for {names}{tested_in(kinds)}."
            if len(strength)
            else f"No program differs between conditions with donors as replicates{tested_in(kinds)}: the smallest "
            f"adjusted p of {counted(len(table), 'comparison')} is {least:.2g}. Few donors suffice only for strong "
            "changes that all share."
        )
        missing.append(Warning(text, "conditions"))
    return Findings(found, missing)


def _difference(significant: pd.DataFrame, tested: pd.DataFrame, condition: str, reference: str) -> str:
    """How a program differs between two conditions: in which of the cell types tested, and how much."""
    strongest = significant.loc[significant["effect"].abs().idxmax()]
    alike = (significant["effect"] > 0) == (strongest["effect"] > 0)
    higher, lower = ("higher", "lower") if strongest["effect"] > 0 else ("lower", "higher")
    kind, n_alike, n_tested = strongest["cell_type"], int(alike.sum()), len(tested)
    if n_tested == 1:
        where = "" if kind == ALL_CELLS else f" in {kind}, the only cell type tested"
    elif n_alike == 1:
        where = f" in {kind}, of {n_tested} cell types tested"
    else:
        where = f" in {'all' if n_alike == n_tested else f'{n_alike} of'} {n_tested} cell types tested, most in {kind}"
    by = f"by {abs(strongest['effect']):.2f} SD ({_interval(strongest)}; adjusted p {strongest['padj']:.2g}"
    n_donors = counted(int(strongest["n_donors"]), "donor")
    text = f"{higher} in {condition} than in {reference}{where}: {by}, {n_donors} as replicates)."
    opposite = significant[~alike].sort_values("p", kind="stable")
    parts = [
        f"{row.cell_type} (by {abs(row.effect):.2f} SD; adjusted p {row.padj:.2g})" for row in opposite.itertuples()
    ]
    return f"{text} It is {lower} in {listed(parts)}." if parts else text


def tested_in(kinds: Sequence[str]) -> str:
    """Which cell types were tested, as the end of a clause; nothing where all cells were tested together.

    Examples
    --------
    >>> from ldvae.report.prose import tested_in
    >>> tested_in(["all cells"]), tested_in(["B cells"])
    ('', ' in B cells, the only cell type tested')
    >>> tested_in(["B cells", "NK cells"])
    ' in any of the 2 cell types tested (B cells and NK cells)'
    """
    if list(kinds) == [ALL_CELLS]:
        return ""
    if len(kinds) == 1:
        return f" in {kinds[0]}, the only cell type tested"
    return f" in any of the {len(kinds)} cell types tested ({listed(kinds, 12)})"


def _interval(row: pd.Series) -> str:
    ends = sorted(abs(row[end]) for end in ("lower", "upper"))
    return f"95% interval {ends[0]:.2f} to {ends[1]:.2f}"


def _condition_effects(results: Results) -> list[Warning]:
    """Without donors: the strongest effects of conditions, as effects."""
    told = conditions_without_donors(results)
    return [
        Warning(
            f"{short_name(results, row.program)} is on average {abs(row.effect):.1f} SD "
            f"{'higher' if row.effect > 0 else 'lower'} in {row.variable} = {row.level} than in the other cells; an "
            "effect, not a test.",
            "programs",
        )
        for row in told.head(3).itertuples()
    ]


def conditions_without_donors(results: Results) -> pd.DataFrame:
    """Strongest effects of the columns that contrasts compare within cell types, which are conditions.

    One row for each program whose mean score differs by at least one standard deviation.
    """
    if results.contrasts.empty or results.associations.empty:
        return pd.DataFrame()
    conditions = set(results.contrasts.loc[results.contrasts["within"].astype(str) != "", "column"])
    table = results.associations[results.associations["variable"].isin(conditions)]
    table = table[table["effect"].abs() >= 1]
    table = table.assign(size=table["effect"].abs()).sort_values(["size", "effect"], ascending=False, kind="stable")
    return table.drop_duplicates("program")


def _why_no_donors(results: Results) -> list[Warning]:
    """Why no program was compared between conditions with donors as units."""
    if len(results.donor_means):
        text = (
            "No program was compared between conditions: in every cell type fewer than three donors have at least 10 "
            "cells in each condition."
        )
    elif not any(results.programs_summary.get("settings", {}).get(key) for key in ("replicate_key", "condition_key")):
        text = (
            "Whether programs differ between conditions was not tested: that needs donors or samples as replicates "
            "(programs: replicate_key and condition_key). Without them, read effects only."
        )
    else:
        text = "Whether programs differ between conditions was not tested: replicate_key and condition_key go together."
    return [Warning(text, "programs")]


def _found_contrasts(results: Results) -> Findings:
    contrasts = results.contrasts
    if contrasts.empty:
        return Findings([], [])
    count = "n_both" if "n_both" in contrasts else "n_de"
    how = "by both the counts and the model" if count == "n_both" else "by the model"
    ranked = contrasts.sort_values(count, ascending=False, kind="stable")
    found = []
    for row in ranked[ranked[count] > 0].head(4).to_dict("records"):
        name = row["contrast"]
        counts = results.de_all_genes.get(name, pd.DataFrame())
        genes = both_genes(results.de[name], counts) if name in results.de else pd.DataFrame()
        # The number of a cluster alone names nothing.
        name = f"{row['column']} {row['contrast']}" if str(row["group1"]).isnumeric() else row["contrast"]
        text = f"{name}: {counted(int(row[count]), 'gene')} {'differs' if row[count] == 1 else 'differ'} {how}"
        up = list(genes[genes["lfc_mean"] > 0]["gene"].head(5)) if len(genes) else []
        side, shown = ("higher", up) if up else ("lower", list(genes["gene"].head(5)))
        text += f"; {side} {'is' if len(shown) == 1 else 'are'} {listed(shown)}." if shown else "."
        found.append(Warning(text, "de"))
    if (more := int((ranked[count] > 0).sum()) - 4) > 0:
        found.append(Warning(f"{counted(more, 'more contrast')} with genes found {how}.", "de"))
    empty = [_uncalled(row) for row in ranked[ranked[count] == 0].to_dict("records")]
    text = f"No gene was found {how} in {listed(empty)}; the section on differential expression gives the reasons."
    missing = [Warning(text, "de")] if empty else []
    return Findings(found, missing)


def _uncalled(row: dict[str, Any]) -> str:
    """A contrast without a gene that all tests call, and what each of them calls."""
    bulk = row.get("n_pseudobulk")
    by_counts = row.get("n_ranked") if bulk is None or pd.isna(bulk) else bulk
    if by_counts is None or pd.isna(by_counts) or not (by_counts or row["n_de"]):
        return str(row["contrast"])
    return f"{row['contrast']} ({int(by_counts):,} by the counts, {int(row['n_de']):,} by the model)"


def both_genes(table: pd.DataFrame, counts: pd.DataFrame) -> pd.DataFrame:
    """Genes of a contrast that the counts and the model find, in one direction, in the order of the counts.

    Parameters
    ----------
    table
        The model's table of a contrast.
    counts
        Its tests of all measured genes, the most telling first.
    """
    if "both" not in table:
        return pd.DataFrame(columns=["gene", "lfc_mean"])
    own = table[table["both"].astype(bool)]
    return own.iloc[np.argsort(pd.Index(counts["gene"]).get_indexer(own["gene"]), kind="stable")]


def _found_gene_sets(results: Results) -> Findings:
    table = results.enrichment
    if not results.programs_summary.get("settings", {}).get("gene_sets") and table.empty:
        return Findings([], [])
    enriched = table[table["padj"] < 0.05].sort_values("p", kind="stable")
    best = enriched.drop_duplicates("program")
    where = {"positive": "in", "negative": "on the negative side of"}
    found = [
        f"{row.term} {where[row.side]} {short_name(results, row.program)} ({row.overlap} of {row.n_term} genes)"
        for row in best.head(4).itertuples()
    ]
    ranked = results.ranked_sets
    by_ranks = set(ranked.loc[ranked["padj"] < 0.05, "program"]) if len(ranked) else set()
    none = [name for name in results.programs.index if name not in set(enriched["program"]) | by_ranks]
    told = [Warning(f"Enriched gene sets: {listed(found)}.", "programs")] if found else []
    missing = (
        [Warning(f"No gene set is enriched in {listed(none, 15)}, by members or by ranks.", "programs")] if none else []
    )
    return Findings(told, missing)


def _found_doubts(results: Results) -> Findings:
    """Faults that were looked for and not found: as good to know as those that were."""
    programs, missing = results.programs, []
    if not programs["technical"].astype(bool).any():
        text = "No program follows a technical variable beyond what biological columns explain."
        missing.append(Warning(text, "programs"))
    if "agreement" in programs and not (programs["agreement"] < DISAGREES).any():
        missing.append(Warning("No program's scores contradict its genes.", "programs"))
    types = results.qc.get("per_type", {})
    if len(types) > 1 and not _lost_types(results):
        missing.append(Warning("No cell type lost more than a third of its cells in quality control.", "qc"))
    return Findings([], missing)


def _lost_types(results: Results) -> list[str]:
    """Cell types that lost more than a third of their cells."""
    types = results.qc.get("per_type", {})
    return [name for name, count in types.items() if count["after"] < count["before"] * 2 / 3]


def end_of_run(summaries: list[dict[str, Any]], page: str, unfinished: Sequence[dict[str, Any]] = ()) -> str:
    """What a person wants to know when a run ends, from what `render_report` says of each dataset.

    Parameters
    ----------
    summaries
        One for each dataset: the contents of report.json.
    page
        Path of the page that leads to all reports.
    unfinished
        The other datasets: `dataset`, and `failures` (verb and message of each failed job).

    Returns
    -------
    Lines for a terminal: what was found and what was not in each dataset, its warnings, and what to open next.
    """
    names = {one["dataset"] for one in [*summaries, *unfinished] if one["dataset"] != "across"}
    some = f"{len(summaries)} of " * (len(names) > len(summaries))
    lines = [f"Finished: {some}{counted(len(names), 'dataset')}."]
    for one in summaries:
        seconds = sum(float(run.get("wall_s") or 0) for run in one["runs"])
        lines.append(f"{one['dataset']} ({counted(len(one['runs']), 'run')}, {seconds / 60:.1f} min of training):")
        for title, texts in (
            ("Found", one["found"]),
            ("Not found", one["not_found"]),
            ("Read with care", one["warnings"]),
        ):
            if texts:
                lines.append(f"  {title}:")
                lines += [f"  - {text}" for text in texts[:5]]
                if (more := len(texts) - 5) > 0:
                    lines.append(f"  - {more} more in the report.")
    for one in unfinished:
        lines.append(f"{one['dataset']}: not finished.")
        lines += [f"  ldvae {failure['verb']}: {failure['message']}" for failure in one["failures"]]
    lines.append(f"Next: open {page} in a browser.")
    return "\n".join(lines)


def sentence(text: str) -> str:
    """Text with a capital first letter, unless it starts with the name of something, and a full stop."""
    text = text.strip()
    if text.split(" ", 1)[0].isalpha():
        text = text[:1].upper() + text[1:]
    return text + ("" if text.endswith((".", "!", "?")) else ".")

"""Programs between conditions, with donors as replicates."""

from __future__ import annotations

from typing import Any

from ldvae.report import figures, prose
from ldvae.report.page import Column, Page, Table
from ldvae.report.results import Results


def section(page: Page, results: Results) -> dict[str, Any] | None:
    """Programs between conditions with donors as replicates; None where there were none."""
    table = results.donors
    if table.empty:
        return None
    names = list(results.programs.index)
    pairs = table[["condition", "reference"]].drop_duplicates().itertuples(index=False)
    drawn = []
    for condition, reference in pairs:
        own = table[(table["condition"] == condition) & (table["reference"] == reference)]
        effects = own.pivot(index="program", columns="cell_type", values="effect").reindex(names).dropna(how="all")
        drawn.append(
            page.draw(
                figures.heatmap(
                    effects.rename(index={name: prose.short_name(results, name) for name in names}),
                    name=f"conditions_{figures.slug(f'{condition}_{reference}')}",
                    title=f"{condition} against {reference}",
                    caption=f"Mean score over donors in {condition} minus that in {reference}, in standard deviations. "
                    "Empty: too few donors.",
                    value="Difference (SD)",
                )
            )
        )
    shown = Table(
        name="donors",
        title="Differences, strongest evidence first",
        frame=table.sort_values("p", kind="stable"),
        columns=[
            Column(key="program", title="Program", kind="program"),
            Column(key="cell_type", title="Cell type"),
            Column(key="condition", title="Condition"),
            Column(key="reference", title="Against"),
            Column(key="effect", title="Difference (SD)", kind="number", help="of the mean scores over donors"),
            Column(key="lower", title="from", kind="number", help="95 % interval"),
            Column(key="upper", title="to", kind="number", help="95 % interval"),
            Column(key="padj", title="Adjusted p", kind="p", help="over all programs, cell types and conditions"),
            Column(key="high_effect", title="High cells", kind="number", help="difference of the shares of high cells"),
            Column(key="high_padj", title="Adjusted p, high cells", kind="p"),
            Column(key="n_donors", title="Donors", kind="number"),
            Column(key="paired", title="Paired", help="each donor was seen in both conditions"),
        ],
        page=15,
        search=True,
    )
    significant = int((table["padj"] < 0.05).sum())
    return {
        "figures": drawn,
        "table": page.table(shown),
        "significant": significant,
        "n": len(table),
        "left_out": results.programs_summary.get("left_out", []),
        "paired": bool(table["paired"].astype(bool).all()),
    }

"""The workflow on real cells: the demo as it stands, and two datasets whose answers are known."""

import json
import os
import warnings
from collections import Counter

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from workplace import ROOT, Workplace

INTERFERON = {"ISG15", "IFIT1", "IFIT2", "IFIT3", "RSAD2", "ISG20", "IFI6", "IFITM3", "TNFSF10", "CXCL10"}


def best_agreement(adata, basis, labels):
    """Adjusted Rand index of Leiden clusters against labels, the best of resolutions 0.3 to 1."""
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scanpy.pp.neighbors(adata, use_rep=basis)
        found = []
        for resolution in np.arange(0.3, 1.01, 0.1):
            scanpy.tl.leiden(
                adata, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, key_added="c"
            )
            found.append(adjusted_rand_score(adata.obs[labels], adata.obs["c"]))
    return max(found)


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.read_h5ad(path)


@pytest.mark.slow
def test_the_demo_separates_the_cell_types_and_is_then_finished(tmp_path):
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    place = Workplace(tmp_path, config, dict(os.environ))
    place.snakemake()
    adata = read(tmp_path / "results/pbmc68k/annotated.h5ad")
    assert (
        best_agreement(adata, "X_ldvae", "bulk_labels") > 0.45
    )  # the reference: 0.47 to 0.49, ten components of PCA 0.51
    is_b, is_t = (adata.obs["bulk_labels"].str.contains(name).to_numpy() for name in ("B", "^CD[48]"))
    aucs = [roc_auc_score(is_b[is_b | is_t], scores[is_b | is_t]) for scores in adata.obsm["X_programs"].T]
    assert max(max(aucs), 1 - min(aucs)) > 0.95
    page = (tmp_path / "results/pbmc68k/report.html").read_text()
    assert "bulk_labels" in page
    contrasts = pd.read_csv(tmp_path / "results/pbmc68k/de/contrasts.tsv", sep="\t")
    assert all((tmp_path / "results/pbmc68k/de" / name).exists() for name in contrasts["file"])
    assert not (tmp_path / "checkpoints/pbmc68k").exists() or not any((tmp_path / "checkpoints/pbmc68k").iterdir())
    assert place.pending() == Counter()


@pytest.mark.slow
def test_two_real_datasets_give_their_known_answers(tmp_path, shared_data):
    ten_x = shared_data / "pbmc3k_10x_mtx"
    config = {
        "datasets": {
            "pbmc3k": {
                "input": str(ten_x / "filtered_gene_bc_matrices" / "hg19"),
                "qc": {"obs_table": str(ten_x / "cell_types_by_barcode.csv")},
            },
            "kang": {
                "input": str(shared_data / "kang2018_stim_ctrl.h5ad"),
                "setup": {"batch_key": "donor"},
                "de": {
                    "contrasts": [{"column": "condition", "group1": "stim", "group2": "ctrl", "within": "cell_type"}],
                    "replicate_key": "donor",
                },
            },
        },
        "sweep": {"seeds": [0, 1, 2, 3]},
    }
    place = Workplace(tmp_path, config, dict(os.environ))
    place.snakemake()
    for name in ("pbmc3k", "kang"):
        assert (tmp_path / "results" / name / "report.html").stat().st_size > 100_000
    kang = tmp_path / "results" / "kang"
    top = pd.read_csv(kang / "programs/top_genes.tsv", sep="\t").query("rank <= 10")
    hits = top.groupby(["program", "side"])["gene"].agg(lambda genes: len(INTERFERON & set(genes)))
    assert hits.max() >= 6
    program = hits.idxmax()[0]
    adata = read(kang / "annotated.h5ad")
    auc = roc_auc_score(adata.obs["condition"] == "stim", adata.obs[program])
    assert max(auc, 1 - auc) > 0.9
    contrasts = pd.read_csv(kang / "de/contrasts.tsv", sep="\t")
    monocytes = contrasts[contrasts["within"].str.contains("CD14")].iloc[0]
    genes = pd.read_csv(kang / "de" / monocytes["file"], sep="\t").sort_values("proba_de", ascending=False)["gene"]
    assert len(INTERFERON & set(genes.head(50))) >= 5
    best = json.loads((kang / "select/best.json").read_text())
    assert best["run"] in best["runs"]

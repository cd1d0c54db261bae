"""Public names of a trained LinearSCVI of scvi-tools, for tests/test_parity.py; run where scvi-tools 1.4.2 is.

    python tests/reference/make_names.py

Writes public_names.json beside this file: what dir() shows of the model, of its AnnDataManager, of its module (without
the names of every torch module) and of scvi.settings.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import scvi
from anndata import AnnData
from torch import nn

warnings.simplefilter("ignore")
adata = AnnData(np.random.default_rng(0).poisson(2, (120, 20)).astype(np.float32))
adata.obs["batch"] = ["a", "b"] * 60
scvi.model.LinearSCVI.setup_anndata(adata, batch_key="batch")
model = scvi.model.LinearSCVI(adata, n_latent=3)
model.train(2, accelerator="cpu", enable_progress_bar=False)
walked = {
    "model": model,
    "adata_manager": model.adata_manager,
    "module": model.module,
    "settings": scvi.settings,
}
lines = []
for label, of in walked.items():
    names = set(dir(of)) - (set(dir(nn.Module())) if label == "module" else set())
    lines.append(f' "{label}": {json.dumps(sorted(name for name in names if not name.startswith("_")))}')
Path(__file__).with_name("public_names.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")

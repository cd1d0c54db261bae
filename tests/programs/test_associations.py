"""What scores follow is what scipy's tests say."""

import numpy as np
import pandas as pd
from scipy import stats

from ldvae import programs as gp


def test_associations_are_those_of_scipy(found):
    rng = np.random.default_rng(0)
    scores = found.scores
    obs = pd.DataFrame(index=scores.index)
    obs["group"] = pd.Categorical(np.where(scores["P1"] + rng.normal(size=len(obs)) > 0, "a", "b"))
    obs["counts"] = scores["P2"] + rng.normal(size=len(obs))
    obs.loc[obs.index[:50], "counts"] = np.nan
    obs["name"] = obs.index
    table = gp.associations(scores, obs.sample(frac=1, random_state=0), technical=["counts"])
    assert set(table["variable"]) == {"group", "counts"}
    row = table[(table["program"] == "P1") & (table["level"] == "a")].iloc[0]
    inside = obs["group"] == "a"
    test = stats.mannwhitneyu(scores["P1"][inside], scores["P1"][~inside], use_continuity=False, method="asymptotic")
    np.testing.assert_allclose(row["auc"], test.statistic / (inside.sum() * (~inside).sum()))
    np.testing.assert_allclose(row["p"], test.pvalue, rtol=1e-6)
    np.testing.assert_allclose(row["effect"], scores["P1"][inside].mean() - scores["P1"][~inside].mean())
    row = table[(table["program"] == "P2") & (table["variable"] == "counts")].iloc[0]
    test = stats.spearmanr(scores["P2"][50:], obs["counts"][50:])
    np.testing.assert_allclose([row["effect"], row["p"]], test, rtol=1e-6)
    assert row["technical"]
    np.testing.assert_allclose(row["explained"], test.statistic**2)
    row = table[(table["program"] == "P1") & (table["level"] == "a")].iloc[0]
    np.testing.assert_allclose(row["explained"], np.corrcoef(scores["P1"], inside)[0, 1] ** 2)
    np.testing.assert_allclose(table["padj"], stats.false_discovery_control(table["p"]))

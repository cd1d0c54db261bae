"""Words of the report that a biologist may meet for the first time, each in a sentence or two."""

#: Shown where the word stands and in a list at the end of the page.
GLOSSARY = {
    "program": "A set of genes whose expression rises and falls together across cells, with a score for each cell.",
    "score": "How strongly a cell expresses a program, in standard deviations over all cells; 0 is the mean cell, or "
    "a cell "
    "without any program if the data contain such cells.",
    "loading": "Change of the natural log of a gene's expected expression per standard deviation of the score.",
    "effect": "Like a loading, but from a regression of the counts on the scores, so that every measured gene has one.",
    "share": "How much of the variation that the fits explain belongs to a program, weighted by the information in the "
    "counts.",
    "stability": "Mean cosine between a program and its versions in single fits. 1: equal in all fits; below 0.9: "
    "not the same in all.",
    "settled": "How likely another set of as many seeds finds the program: the share of pairs of random halves of the "
    "seeds in which both halves find it and agree on it. Below 90% it may not be found again; more seeds can settle "
    "it.",
    "agreement": "Whether cells with a high score express the program's own genes: 1 is full agreement. Below 0.5 the "
    "genes may belong to a larger program.",
    "factor": "An axis of the latent space of one fit. Programs are made from the factors of several fits.",
    "ELBO": "Evidence lower bound: how well the model explains cells, in nats per cell. Shown with a minus sign, so "
    "lower is better.",
    "KL": "Information of a factor about a cell, in nats; a factor near 0 has collapsed and carries none.",
    "AUC": "Probability that a cell of the first group has a higher value than a cell of the others: 0.5 is chance, "
    "1 always.",
    "pseudobulk": "The summed counts of all cells of one donor and group: donors, not cells, are the replicates.",
    "rank-sum test": "Wilcoxon's test of whether a gene is higher in one group of cells than in another; cells count "
    "as replicates, so its p values are too small for conclusions about donors.",
    "P(DE)": "Probability, by the model, that the log2 fold change is larger than the limit `delta`.",
    "Bayes factor": "Evidence of the model for a change against none; natural log, above 0 speaks for a change.",
    "false discovery rate": "Expected share of false positives among the called genes.",
    "called": "Counted as changed at the false discovery rate of the config.",
    "adjusted p": "p value corrected for the number of tests, after Benjamini and Hochberg.",
}

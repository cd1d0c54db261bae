"""Words of the report that a biologist may meet for the first time, each in a sentence or two."""

#: Shown where the word stands and in a list at the end of the page.
GLOSSARY = {
    "program": "A set of genes that rise and fall together over the cells, with a score for each cell.",
    "score": "How strongly a cell runs a program, in standard deviations over all cells; 0 is the mean cell, or a cell "
    "without any program where there are such cells.",
    "loading": "Change of the natural log of a gene's expected expression per standard deviation of the score.",
    "effect": "The same as a loading, but from a regression of the counts on the scores, so that it is known of every "
    "measured gene.",
    "share": "How much of everything that the fits explain belongs to a program, weighted by the information in the "
    "counts.",
    "stability": "Mean cosine between a program and its version in single fits: 1 is the same in all, below 0.9 not.",
    "settled": "How likely another set of as many seeds has the program: in how many pairs of random halves of the "
    "seeds both have it and agree on it. Below 90% it may not be found again; more seeds can settle it.",
    "agreement": "Whether cells with a high score express the program's own genes: 1 is full agreement. Below 0.5 the "
    "genes may belong to a larger program.",
    "factor": "An axis of the fitted model, before what several fits share is turned into programs.",
    "ELBO": "Evidence lower bound: how well the model explains cells, in nats per cell. Shown with a minus sign, so "
    "lower is better.",
    "KL": "How much a factor says about a cell, in nats; a factor near 0 has collapsed and says nothing.",
    "AUC": "How often a cell of the first group is above one of the others: 0.5 is chance, 1 always.",
    "pseudobulk": "The counts of all cells of one donor and group, summed: donors, not cells, are the replicates.",
    "rank-sum test": "Wilcoxon's test of whether a gene is higher in one group of cells than in another; cells count "
    "as replicates, so its p values are too small for conclusions about donors.",
    "P(DE)": "Probability, by the model, that the log2 fold change is larger than the limit `delta`.",
    "Bayes factor": "Evidence of the model for a change against none; natural log, above 0 speaks for a change.",
    "false discovery rate": "Expected share of mistakes among the genes that are called.",
    "called": "Counted as changed at the false discovery rate of the config.",
    "adjusted p": "p value corrected for the number of tests, after Benjamini and Hochberg.",
}

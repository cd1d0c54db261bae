"""The steps of the workflow, one module each: a results folder in, a results folder out."""

#: The verbs of the command line in the order of the workflow, each with the first line of its help.
VERBS = {
    "qc": "Read the counts of a dataset and keep the cells and genes that pass quality control.",
    "setup": "Choose the genes to model, register the obs columns the model knows, and split the cells once.",
    "train": "Fit one model from one seed, and measure it on the cells it has not seen.",
    "select": "Compare the settings of a sweep on held-out cells and by what reproduces, and choose one.",
    "programs": "Average the chosen fits, turn what they share into gene programs, and say what the programs are.",
    "annotate": "Put factors, programs, neighbors, UMAP and clusters into one AnnData.",
    "de": "Find the genes that differ between groups of cells, with the best run's model and in pseudobulks.",
    "report": "Write the report of a dataset: one page that needs no network, and its figures as files.",
    "across": "Compare the programs of several datasets: which they share, and which are one's own.",
    "index": "Write the page that leads to the reports of all datasets and compares all runs.",
    "project": "Score the cells of a new dataset with the programs of an old one.",
    "pack": "Write the programs of a dataset, or meta-programs, into one file that is used without the data.",
    "simulate": "Draw counts from known gene programs.",
    "check": "Check configs and the data they name, or files of counts, and say what is in them.",
    "plan": "Print the datasets, runs and flags that a config expands to, as JSON.",
    "schema": "Print the JSON schema of config.yaml (for editors and other tools), as YAML.",
    "init": "Write a folder to work in: config, Snakefile and cluster profiles.",
    "profile": "Copy a Snakemake profile to where `snakemake --profile` finds it from any folder.",
    "migrate": "Rename the finished runs of an older version to the ids of this version: they are not trained again.",
}

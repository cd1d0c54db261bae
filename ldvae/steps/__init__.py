"""The steps of the workflow, one module each: a results folder in, a results folder out."""

#: The verbs of the command line in the order of the workflow, each with the first line of its help.
VERBS = {
    "qc": "Read the counts of a dataset and keep the cells and genes that pass quality control.",
    "setup": "Choose the genes to model, register the obs columns that the model uses, and split the cells once.",
    "train": "Fit one model from one seed, and evaluate it on held-out cells.",
    "select": "Compare the settings of a sweep by held-out error and reproducible rank, and choose one.",
    "programs": "Average the chosen fits, rotate the shared directions to gene programs, and name and test them.",
    "annotate": "Put factors, programs, neighbors, UMAP and clusters into one AnnData.",
    "de": "Find genes that differ between groups of cells, by ranks, pseudobulks and the best run's model.",
    "report": "Write the report of a dataset: one page that needs no network, and its figures as files.",
    "across": "Compare the programs of several datasets: those they share, and those of one dataset only.",
    "index": "Write the page that links to the reports of all datasets and compares all runs.",
    "project": "Score the cells of a new dataset with the programs of an old one.",
    "pack": "Write the programs of a dataset, or meta-programs, into one file that is used without the data.",
    "simulate": "Draw counts from known gene programs.",
    "check": "Check configs with their data, or files of counts, and print what they hold.",
    "plan": "Print the datasets, runs and flags that a config expands to, as JSON.",
    "schema": "Print the JSON schema of config.yaml (for editors and other tools), as YAML.",
    "init": "Write a folder to work in: config, Snakefile and cluster profiles.",
    "profile": "Copy a Snakemake profile to where `snakemake --profile` finds it from any folder.",
    "migrate": "Rename the finished runs of an older version to the ids of this version: they are not trained again.",
}

# `snakemake` from the root of a clone: the workflow itself is in workflow/Snakefile.
include: "workflow/Snakefile"


rule default:
    """Make everything."""
    default_target: True
    input:
        rules.all.input,
    localrule: True

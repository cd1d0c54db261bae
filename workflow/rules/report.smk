# Sections of `snakemake --report` by the first word of a figure's name.
SECTIONS = {
    "training": "2 training",
    "kl": "2 training",
    "choice": "3 choice of the model",
    "fit": "5 fit",
    "de": "6 differential expression",
}


rule report:
    """Write the report of a dataset: one page that needs no network."""
    input:
        qc_summary="<results>/{dataset}/qc/summary.json",
        qc_cells="<results>/{dataset}/qc/cells.tsv.gz",
        setup_summary="<results>/{dataset}/setup/summary.json",
        metrics=of_runs("metrics.json"),
        histories=of_runs("history.csv"),
        fit=of_runs("fit.tsv"),
        runs="<results>/{dataset}/select/runs.tsv",
        settings="<results>/{dataset}/select/settings.tsv",
        correlations="<results>/{dataset}/select/correlations.tsv",
        best="<results>/{dataset}/select/best.json",
        programs="<results>/{dataset}/programs/programs.tsv",
        top_genes="<results>/{dataset}/programs/top_genes.tsv",
        consensus="<results>/{dataset}/programs/consensus.tsv",
        stability="<results>/{dataset}/programs/stability.tsv",
        associations="<results>/{dataset}/programs/associations.tsv",
        enrichment="<results>/{dataset}/programs/enrichment.tsv",
        programs_summary="<results>/{dataset}/programs/summary.json",
        annotated="<results>/{dataset}/annotated.h5ad",
        de=lambda wildcards: "<results>/{dataset}/de" if plan.datasets[wildcards.dataset].de.contrasts else [],
        resolved="<results>/{dataset}/resolved.json",
    output:
        page=report(
            "<results>/{dataset}/report.html",
            caption="../report/report.rst",
            category="{dataset}",
            subcategory="0 report",
            labels={"content": "the report"},
        ),
        summary="<results>/{dataset}/report.json",
        figures=report(
            directory("<results>/{dataset}/figures"),
            patterns=["{figure,(?!qc_).+}.svg"],  # the step qc has its own
            caption="../report/figure.rst",
            category="{dataset}",
            subcategory=lambda wildcards: SECTIONS.get(wildcards.figure.split("_")[0], "4 programs"),
            labels=lambda wildcards: {"content": wildcards.figure.replace("_", " ")},
        ),
    log:
        "<logs>/report/{dataset}.log",
    benchmark:
        "<benchmarks>/report/{dataset}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    threads: 1
    resources:
        mem_mb=memory("report"),
        runtime=minutes("report"),
    params:
        contrasts=lambda wildcards, input: ["--contrasts", f"{input.de}/contrasts.tsv"] if input.de else [],
        benchmarks=plan.path("benchmarks"),
        flags=options("report"),
    shell:
        r"""
        ldvae report --dataset {wildcards.dataset} \
            --qc-summary {input.qc_summary:q} --qc-cells {input.qc_cells:q} --setup-summary {input.setup_summary:q} \
            --metrics {input.metrics:q} --histories {input.histories:q} --fit {input.fit:q} \
            --select-runs {input.runs:q} --select-settings {input.settings:q} \
            --select-correlations {input.correlations:q} --best {input.best:q} \
            --programs {input.programs:q} --top-genes {input.top_genes:q} --consensus {input.consensus:q} \
            --stability {input.stability:q} --associations {input.associations:q} \
            --enrichment {input.enrichment:q} --programs-summary {input.programs_summary:q} \
            --annotated {input.annotated:q} {params.contrasts:q} --resolved {input.resolved:q} \
            --benchmarks {params.benchmarks:q} \
            --output {output.page:q} --summary {output.summary:q} --figures {output.figures:q} \
            {params.flags:q} 2>{log:q}
        """


rule index:
    """Write the page that leads to the reports of all datasets."""
    input:
        summaries=expand("<results>/{dataset}/report.json", dataset=plan.datasets),
        pages=expand("<results>/{dataset}/report.html", dataset=plan.datasets),
    output:
        page=report("<results>/index.html", caption="../report/index.rst", category="all datasets"),
    log:
        "<logs>/index/index.log",
    localrule: True
    conda:
        "../../envs/ldvae.yaml"
    shell:
        "ldvae index --summaries {input.summaries:q} --output {output.page:q} 2>{log:q}"

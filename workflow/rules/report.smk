rule report:
    """Write the report of a dataset: one page that needs no network."""
    input:
        inputs("report"),
    output:
        outputs("report"),
    log:
        "<logs>/report/{dataset}.log",
    benchmark:
        "<benchmarks>/report/{dataset}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    container:
        image("cpu")
    threads: 1
    resources:
        mem_mb=memory("report"),
        runtime=minutes("report"),
    params:
        results=results_of("report"),
        benchmarks=lambda wildcards, output: str(beside(results_of("report")(wildcards, output), "benchmarks")),
        flags=options("report"),
    shell:
        "ldvae report --results {params.results:q} --benchmarks {params.benchmarks:q} {params.flags:q} 2>{log:q}"


rule index:
    """Write the page that links to the reports of all datasets."""
    input:
        summaries=expand(f"<results>/{{dataset}}/{layout.REPORT_SUMMARY.path}", dataset=plan.datasets),
        pages=expand(f"<results>/{{dataset}}/{layout.PAGE.path}", dataset=plan.datasets),
        across=[f"<results>/{file.path}" for file in (layout.ACROSS_SUMMARY, layout.ACROSS_PAGE) if plan.across],
        others=indexed_before,
    output:
        page=report(f"<results>/{layout.INDEX.path}", caption="../report/index.rst", category="all datasets"),
    log:
        "<logs>/index/index.log",
    localrule: True
    conda:
        "../../envs/ldvae.yaml"
    container:
        image("cpu")
    params:
        results=lambda wildcards, output: str(Path(output.page).parent),
        datasets=list(plan.datasets),
        across=WITH_ACROSS,
    shell:
        "ldvae index --results {params.results:q} --datasets {params.datasets:q} {params.across} 2>{log:q}"

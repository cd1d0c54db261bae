rule across:
    """Compare the programs of several datasets: those they share, and those of one dataset only."""
    input:
        of_all("across"),
        others=compared_before,
    output:
        [
            directory(f"<results>/{file.path}") if file.is_folder else f"<results>/{file.path}"
            for file in layout.outputs("across")
            if file != layout.ACROSS_PAGE
        ],
        page=report(f"<results>/{layout.ACROSS_PAGE.path}", caption="../report/across.rst", category="all datasets"),
    log:
        "<logs>/across/across.log",
    benchmark:
        "<benchmarks>/across/across.tsv"
    conda:
        "../../envs/ldvae.yaml"
    container:
        image("cpu")
    threads: 1
    resources:
        mem_mb=memory("across", dataset=next(iter(plan.datasets))),
        runtime=minutes("across", dataset=next(iter(plan.datasets))),
    params:
        results=lambda wildcards, output: str(layout.ACROSS_PAGE.results_of(output.page)),
        datasets=plan.across.datasets if plan.across else [],
        flags=flags(plan.across.config) if plan.across else [],
    shell:
        "ldvae across --results {params.results:q} --datasets {params.datasets:q} {params.flags:q} 2>{log:q}"

"""The processes and the whole workflow as parts of somebody else's pipeline."""

import json
import re

import pytest
from pipelines import ROOT

pytestmark = pytest.mark.nextflow

SIMULATE = """
process SIMULATE {
    input:
    val name

    output:
    tuple val(name), path('*.h5ad')

    script:
    \"\"\"
    ldvae simulate --output ${name}.h5ad --n-obs 200 --n-vars 100
    \"\"\"
}
"""

ALONE = """
include { TRAIN } from '%s/workflow/processes/train'

process REGISTER {
    input:
    tuple val(name), path(counts)

    output:
    tuple val(name), path('mine/setup/counts.h5ad')

    script:
    \"\"\"
    mkdir -p mine/qc
    mv ${counts} mine/qc/filtered.h5ad
    ldvae setup --results mine --genes all
    \"\"\"
}

process TELL {
    publishDir 'told', mode: 'copy'

    input:
    tuple val(meta), path(run)

    output:
    path "${meta.id}.json"

    script:
    \"\"\"
    cp ${run}/metrics.json ${meta.id}.json
    \"\"\"
}
"""


def test_train_alone_is_a_process_of_another_pipeline(pipeline):
    script = pipeline.folder / "main.nf"
    script.write_text(
        ALONE % ROOT
        + SIMULATE
        + """
workflow {
    REGISTER(SIMULATE('mine'))
    TRAIN(REGISTER.out.map { name, counts -> [[id: name, run: 'first'], counts, [:], '--seed 3 --n-latent 4'] })
    TELL(TRAIN.out.run)
}
"""
    )
    (pipeline.folder / "nextflow.config").write_text("process { withName: TRAIN { ext.args = '--max-epochs 2' } }\n")
    done = pipeline.run(script=script)
    assert done.code == 0, done.text
    assert done.ran() == {"SIMULATE": 1, "REGISTER": 1, "TRAIN": 1, "TELL": 1}
    told = json.loads((pipeline.folder / "told" / "mine.json").read_text())
    assert (told["seed"], told["params"]["n_latent"], told["epochs"]) == (3, 4, 2)


def test_ldvae_whole_takes_counts_that_another_process_makes(pipeline):
    pipeline.configure(
        datasets={"made": {"input": "made.h5ad"}, "demo": {"input": "demo:pbmc68k"}}, sweep={"seeds": [0, 1]}
    )
    pipeline.quick(f'if [ $1 = qc ]; then echo "$@" >> "{pipeline.folder}/qc.txt"; fi')
    script = pipeline.folder / "main.nf"
    script.write_text(
        f"include {{ LDVAE }} from '{ROOT}/workflow/ldvae'\n"
        + SIMULATE
        + """
workflow {
    LDVAE("${projectDir}/config.yaml", SIMULATE('made'))
    LDVAE.out.programs.view { meta, folder -> "programs of ${meta.id}: ${folder.name}" }
}
"""
    )
    (pipeline.folder / "nextflow.config").write_text("process { withName: PLAN { ext.args = '--made-elsewhere' } }\n")
    done = pipeline.run(script=script)
    assert done.code == 0, done.text
    assert done.ran() == {"SIMULATE": 1, "TRAIN": 4, "INDEX": 1} | dict.fromkeys(
        ("QC", "SETUP", "SELECT", "PROGRAMS", "ANNOTATE", "REPORT"), 2
    )
    assert {"programs of made: programs", "programs of demo: programs"} <= set(done.text.splitlines())
    called = (pipeline.folder / "qc.txt").read_text()
    assert re.search(r"--results made --input \S*made\.h5ad", called)
    assert "--results demo --input demo:pbmc68k" in called

"""What depends on what. `make book` runs this through `python -m corea.pipeline build`.

By hand, or on a cluster:  snakemake --cores all --config profile=laptop
"""

import sys
from pathlib import Path

from corea.pipeline import load_profile, run_inputs, write_parameters

profile = load_profile(config.get("profile", "laptop"))
write_parameters(profile)  # a file changes only when its content does
executed = f"{profile.directory}/executed/{{run}}.ipynb"


wildcard_constraints:
    run=r"\w+",


rule book:
    input:
        expand(executed, run=profile.runs),
        [path for path in Path("book").rglob("*") if path.is_file()],
        ["_config.yml", "_toc.yml", "constraints.txt", "corea/pipeline.py"],
    output:
        profile.index,
    shell:
        "{sys.executable:q} -m corea.pipeline render {profile.name}"


rule chapter:
    input:
        lambda wildcards: run_inputs(profile.runs[wildcards.run]),
        lambda wildcards: [executed.format(run=run) for run in profile.runs[wildcards.run].needs],
        f"{profile.directory}/parameters/{{run}}.yaml",
    output:
        executed,
        directory(f"{profile.directory}/tables/{{run}}"),
    priority: lambda wildcards: profile.priorities[wildcards.run]
    shell:
        "{sys.executable:q} -m corea.pipeline execute {profile.name} {wildcards.run}"

import subprocess
import sys
from pathlib import Path

import corea

MODULES = sorted(p.stem for p in Path(corea.__file__).parent.glob("[!_]*.py"))


def loaded_by(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"numpy", "pandas", "matplotlib", "torch", "sklearn", "IPython"}
    assert not heavy & loaded_by("import corea")


def test_no_module_needs_torch():
    everything = "; ".join(f"import corea.{name}" for name in MODULES)
    assert "torch" not in loaded_by(everything)


def test_analysing_records_needs_none_of_the_book():
    core = ("records", "adapters", "calibration", "cascade", "costs", "report", "parsing", "verify")
    book = {"matplotlib", "seaborn", "plotly", "papermill", "IPython", "snakemake"}
    assert not book & loaded_by("; ".join(f"import corea.{name}" for name in core))

"""Where a result comes from: profile, commit, seed, package versions, device.

A provenance is a flat ``dict[str, str]`` that can be shown in a page and stored
in a parquet file's metadata. It names no user, host or path.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("corea", "numpy", "pandas", "scikit-learn", "relplot", "math-verify")


def source_commit() -> str:
    """Commit of the checkout this package is imported from.

    Returns:
        The abbreviated commit, with ``+changes`` when tracked files differ from it,
        or ``"unknown"`` outside a git checkout (an installed wheel, no git).
    """
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return f"{commit}+changes" if git("status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def provenance(
    profile: str, seed: int, *, sources: Sequence[str] = (), packages: Sequence[str] = PACKAGES
) -> dict[str, str]:
    """Facts that a reader needs to make a result again.

    Args:
        profile: Name of the profile the run used.
        seed: Seed of every random number in the run.
        sources: Names of the data the result was computed from (never paths).
        packages: Distributions whose versions are recorded.

    Returns:
        Field name to value, all strings, in reading order.

    Example:
        >>> facts = provenance("laptop", 0, packages=["numpy"])
        >>> list(facts)
        ['profile', 'seed', 'commit', 'date', 'device', 'python', 'numpy']
    """
    facts = {"profile": profile, "seed": str(seed), "commit": source_commit()}
    facts["date"] = datetime.now(UTC).strftime("%Y-%m-%d")
    facts["device"] = f"cpu ({os.cpu_count()} cores, {platform.system()} {platform.machine()})"
    facts["python"] = platform.python_version()
    if sources:
        facts["sources"] = "; ".join(sources)
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts

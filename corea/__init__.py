"""Calibrated small language models and small-to-large cascades.

The package is a set of small modules around one table, the records
(:mod:`corea.records`): one row per (dataset, question, system, sample) with
correctness, confidence and tokens. Import the module you need; importing the
package itself loads nothing heavy.
"""

__version__ = "0.1.0"

"""Profiles, and how their notebooks are planned, executed and made a book."""


class PipelineError(Exception):
    """What a person must know and can mend: shown without a traceback."""

"""Calibration, cascades and their cost, with intervals."""

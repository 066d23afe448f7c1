"""Thresholds that keep a promise: certified ones, the card that carries one, and the alarm."""

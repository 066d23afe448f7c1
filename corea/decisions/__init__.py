"""Paper B: decision tokens, their training, recalibration and other signals."""

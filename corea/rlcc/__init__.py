"""Paper A: rewards for calibrated confidence, what they ask for, and the baselines."""

"""Training on TRL: settings, GRPO, SFT, checkpoints, several processes."""

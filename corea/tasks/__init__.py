"""What is asked, and whether an answer is right: datasets, made-up worlds, prompts, parsing."""

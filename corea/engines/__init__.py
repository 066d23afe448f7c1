"""Prompts to completions: transformers, vLLM or a server, and their answers as records."""

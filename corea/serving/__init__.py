"""A cascade one can call: from Python, or as a server that speaks OpenAI's API."""

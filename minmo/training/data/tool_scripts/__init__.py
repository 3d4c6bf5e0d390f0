"""Programs of tools: each is run by the Python of a tool's own environment, never imported."""

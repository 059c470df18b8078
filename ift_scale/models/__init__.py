"""config.json of a model: read, checked, and built by transformers."""

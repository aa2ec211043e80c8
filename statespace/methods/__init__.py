"""Methods: what lowers a model and a recording to a chain, and runs it."""

"""Side-by-side measurements of statespace and its peers: ``python -m benchmarks --help``."""

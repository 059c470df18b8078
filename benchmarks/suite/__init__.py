"""The benchmark suite: the row schema, the registry, comparisons, and generated tables and pages.

The drivers are the modules of `benchmarks/`.
"""

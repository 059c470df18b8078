"""The benchmark suite: rows of one schema, what is measured, comparisons, the page and the figures of README and docs.

The drivers themselves lie in `benchmarks/`, beside the package in a checkout.
"""

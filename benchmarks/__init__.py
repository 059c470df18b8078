"""The benchmark suite and the tools that no run needs: `python -m benchmarks --help`."""

"""Benchmarks of giantvm from Python, beside floors and peers: `python -m pybench`."""

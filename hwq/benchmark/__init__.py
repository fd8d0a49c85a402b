"""Benchmarks: hwq beside other programs, on the same work, in one run."""

"""Benchmarks of a running server: perf_analyzer with real texts, and the times that Triton itself counts."""

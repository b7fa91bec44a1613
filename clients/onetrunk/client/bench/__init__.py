"""Load on a running server by perf_analyzer, with real text, and the times that Triton itself counts."""

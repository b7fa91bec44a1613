"""The Triton model repository: its configs, its ensembles, and writing it so that a crash harms nothing."""

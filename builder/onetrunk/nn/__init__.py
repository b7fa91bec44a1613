"""The torch modules: trunk, heads, output kinds, and the bundle that a trained head is on disk."""

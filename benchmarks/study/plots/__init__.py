"""Plots of a study, each drawn from what was recorded."""

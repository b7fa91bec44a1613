"""What only the paper's study needs: full grids, ablations, the paper's own selections, acceptance criteria."""

"""The paper's table for a base-size trunk, worked through by records over as many days as it takes."""

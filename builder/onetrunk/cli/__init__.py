"""The builder's commands, one a file."""

"""One plan over all tasks: taps and head layers chosen together, for the least measured cost that quality allows."""

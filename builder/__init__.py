"""OneTrunk's builder: everything from labelled text up to a finished Triton model repository."""

__version__ = "0.1.0"

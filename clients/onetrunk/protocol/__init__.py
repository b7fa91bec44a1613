"""What builder, server and clients agree on: errors, names, and the version. Imports neither torch nor gRPC."""

from importlib.metadata import version

__version__ = version("onetrunk")

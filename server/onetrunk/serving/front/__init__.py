"""The front: the process that users talk to, with Triton behind it.

It passes KServe's protocol v2 on, over gRPC and HTTP, and keeps from Triton what Triton does not survive: cancelled
requests, bodies without bounds, and calls that change the server from anybody without the admin key.
"""

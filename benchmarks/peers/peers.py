"""The peers of the benchmark. Nothing here needs their packages: they run in a virtual environment of their own."""

from __future__ import annotations

from benchmarks.peers.peer import HttpRequest, Peer
from benchmarks.peers.running import PeerError, RunningPeer, running_peer
from benchmarks.peers.tasks import REGRESSIONS, TASKS

__all__ = ["PEERS", "REGRESSIONS", "TASKS", "HttpRequest", "Peer", "PeerError", "RunningPeer", "running_peer"]

PEERS = {
    peer.name: peer
    for peer in (
        Peer("fastapi", "serve_fastapi.py"),
        Peer("litserve", "serve_litserve.py"),
        Peer("infinity-optimum", "serve_infinity.py", "infinity", ("--engine", "optimum"), exported=True),
        Peer("infinity-torch", "serve_infinity.py", "infinity", ("--engine", "torch")),
    )
}

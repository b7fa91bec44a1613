"""Triton's command line."""

from __future__ import annotations

from pathlib import Path

from onetrunk.protocol.names import ADMIN_HEADER, ENSEMBLES
from onetrunk.serving.address import Address
from onetrunk.serving.installation import Installation
from onetrunk.serving.runtime import Runtime

# What changes the server or maps its memory. Reading (metadata, model configs, statistics) stays open: clients learn
# the tasks from the ensembles' configs.
ADMIN_PROTOCOLS = "model-repository,shared-memory,trace,logging"

# How long Triton may wait for requests in flight when it stops.
EXIT_TIMEOUT_S = 5
# How long one model may take to load; Triton's own 30 s are short where eight models load on two cores.
LOAD_TIMEOUT_S = 120


def triton_command(
    installation: Installation,
    runtime: Runtime,
    repository: Path,
    address: Address,
    *,
    admin_key: str | None = None,
    verbose: bool = False,
) -> list[str]:
    """Builds the command line that serves a repository.

    Args:
        installation: Which Triton.
        runtime: The process's private folder.
        repository: The model repository.
        address: Host and ports, all chosen.
        admin_key: Where given, the endpoints in `ADMIN_PROTOCOLS` ask for it in the header `ADMIN_HEADER`.
        verbose: Whether Triton logs each request.
    """
    command = [
        str(installation.binary),
        f"--model-repository={repository}",
        f"--backend-directory={runtime.backends}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in ENSEMBLES),  # loading an ensemble loads its parts
        # Generated configs are complete. Completing them would start every model's process twice, and take
        # four seconds in place of one.
        "--disable-auto-complete-config",
        f"--http-address={address.host}",
        f"--grpc-address={address.host}",
        f"--metrics-address={address.host}",
        f"--http-port={address.http_port}",
        f"--grpc-port={address.grpc_port}",
        f"--metrics-port={address.metrics_port}",
        "--allow-gpu-metrics=false",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--backend-config=python,shm-region-prefix-name={runtime.shm_prefix}",
        f"--backend-config=python,stub-timeout-seconds={LOAD_TIMEOUT_S}",
    ]
    if admin_key is not None:
        command += [
            f"--grpc-restricted-protocol={ADMIN_PROTOCOLS}:{ADMIN_HEADER}={admin_key}",
            f"--http-restricted-api={ADMIN_PROTOCOLS}:{ADMIN_HEADER}={admin_key}",
        ]
    if verbose:
        command.append("--log-verbose=1")
    return command

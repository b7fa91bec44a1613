"""A load of bench-repo's own, for servers that ask for an API key: perf_analyzer sends no headers over gRPC."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np

from onetrunk.client.bench.perf_analyzer import WINDOWS, Load
from onetrunk.client.bench.samples import Sample
from onetrunk.client.core import ClientCore, Settings
from onetrunk.client.wire import Tensor, bytes_tensor, int64_tensor, request_message
from onetrunk.protocol.errors import ServerError
from onetrunk.protocol.names import INPUT_IDS, MULTITASK, TEXT, TEXT_PAIR, TOKEN_TYPE_IDS
from onetrunk.protocol.tls import Tls

INFER = "/inference.GRPCInferenceService/ModelInfer"
# A request is given this time. It is long, since ending one early costs the server more than waiting for it.
TIMEOUT_S = 60.0


def run_own_load(
    url: str,
    model: str,
    samples: Sequence[Sample],
    concurrency: int,
    seconds: float,
    *,
    tls: Tls | None = None,
    api_key: str | None = None,
) -> Load:
    """Send the rows again and again, one row in each request, as `run_load` does with perf_analyzer.

    Answers are counted and not read. This costs the client more processor time than perf_analyzer does.

    Args:
        url: Host and port of the server's gRPC endpoint.
        model: The ensemble.
        samples: The rows.
        concurrency: The number of requests at a time.
        seconds: How long to send.
        tls: The client's side of TLS; None connects without.
        api_key: The key for a server that asks for one.

    Raises:
        ServerError: A request failed. The message is the server's.
    """
    core = ClientCore(Settings(url, TIMEOUT_S, concurrency, 0, tls, api_key))
    requests = itertools.cycle([_message(sample, model) for sample in samples])
    next_request = threading.Lock()
    answered: list[tuple[float, float]] = []  # when, and after how many seconds
    failed = threading.Event()

    def send(infer: Any, ends: float) -> None:
        while (began := time.perf_counter()) < ends and not failed.is_set():
            with next_request:
                request = next(requests)
            try:
                infer(request, timeout=TIMEOUT_S, metadata=core.settings.metadata)
            except grpc.RpcError:
                failed.set()
                raise
            now = time.perf_counter()
            answered.append((now, now - began))

    with core.open_replicas(grpc).all[0].channel as channel, ThreadPoolExecutor(concurrency) as threads:
        infer = channel.unary_unary(INFER)
        began = time.perf_counter()
        senders = [threads.submit(send, infer, began + seconds) for _ in range(concurrency)]
        for sender in senders:
            try:
                sender.result()
            except grpc.RpcError as error:
                raise ServerError(f"a request to {model} failed: {error.details()}") from None
    return _load(answered, began)


def _message(sample: Sample, model: str) -> bytes:
    if model == MULTITASK:
        tensors = [bytes_tensor(TEXT, [sample.text.encode()])]
        if sample.pair is not None:
            tensors.append(bytes_tensor(TEXT_PAIR, [sample.pair.encode()]))
    else:
        columns = ((INPUT_IDS, sample.input_ids), (TOKEN_TYPE_IDS, sample.token_type_ids))
        tensors = [_column(name, values) for name, values in columns]
    message: bytes = request_message(model, tensors, ()).SerializeToString()
    return message


def _column(name: str, values: Sequence[int]) -> Tensor:
    return int64_tensor(name, np.array([values], np.int64))


def _load(answered: Sequence[tuple[float, float]], began: float) -> Load:
    """Return the figures, with the spread over as many windows as perf_analyzer's."""
    times = np.array(answered)
    whole_s = times[:, 0].max() - began
    counts, _ = np.histogram(times[:, 0] - began, bins=WINDOWS, range=(0.0, whole_s))
    p50_ms, p99_ms = np.percentile(times[:, 1], [50, 99]) * 1000
    spread = float(counts.max() - counts.min()) / float(counts.mean())
    return Load(len(times) / float(whole_s), spread, float(p50_ms), float(p99_ms))

"""The calls of a benchmark that are not a client's: any model by name, and Triton's statistics."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import grpc
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from onetrunk.client.fault import read_fault
from onetrunk.client.session import CHANNEL_OPTIONS
from onetrunk.client.tensor import Tensor
from onetrunk.client.wire import request_message, response_arrays

# Nothing asked here takes long on a server that is well.
TIMEOUT_S = 60.0


class BenchServer:
    """A connection to Triton, without retries: a benchmark on a server that fails means nothing."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._channel = grpc.insecure_channel(url, options=CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> BenchServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def version(self) -> str:
        """Triton's version. Raises OneTrunkError, as all calls here."""
        return str(self._call(self._stub.ServerMetadata, service_pb2.ServerMetadataRequest()).version)

    def infer(self, model: str, inputs: Sequence[Tensor], outputs: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        """Output name -> array; no names ask for all outputs."""
        return response_arrays(self._call(self._stub.ModelInfer, request_message(model, inputs, outputs)))

    def statistics(self) -> list[Any]:
        """``ModelStatistics`` of every model and version that is loaded."""
        response = self._call(self._stub.ModelStatistics, service_pb2.ModelStatisticsRequest())
        return list(response.model_stats)

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise read_fault(error, url=self.url, timeout_s=TIMEOUT_S).error from None

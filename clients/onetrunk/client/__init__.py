"""Ask a running OneTrunk server: `Client`, `AsyncClient`, and what they return."""

from onetrunk.client.aio import AsyncClient
from onetrunk.client.answer import Answer, Prediction
from onetrunk.client.catalogue import Catalogue
from onetrunk.client.client import Client
from onetrunk.client.pipelines import TextClassificationPipeline, TokenClassificationPipeline, pipeline
from onetrunk.client.tracing import trace_context
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.errors import (
    BadInput,
    DeadlineExceeded,
    NotReady,
    OneTrunkError,
    Problem,
    ServerError,
    TlsError,
    UnknownTask,
)
from onetrunk.protocol.tls import Tls

__all__ = [
    "Answer",
    "AsyncClient",
    "BadInput",
    "Catalogue",
    "Client",
    "DeadlineExceeded",
    "NotReady",
    "OneTrunkError",
    "Prediction",
    "Problem",
    "ServerError",
    "TaskInfo",
    "TextClassificationPipeline",
    "Tls",
    "TlsError",
    "TokenClassificationPipeline",
    "UnknownTask",
    "pipeline",
    "trace_context",
]

"""Ask a running OneTrunk server: `Client`, `AsyncClient`, and what they give back."""

from clients.aio import AsyncClient
from clients.answer import Answer, Prediction
from clients.catalogue import Catalogue
from clients.client import Client
from clients.errors import (
    BadInput,
    DeadlineExceeded,
    NotReady,
    OneTrunkError,
    Problem,
    ServerError,
    UnknownTask,
)
from clients.task_info import TaskInfo

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
    "UnknownTask",
]

"""All endpoints for plain JSON: our own, and those that speak as other servers do."""

from __future__ import annotations

from starlette.routing import Route

from onetrunk.serving.front.api import Api
from onetrunk.serving.front.dialects.classify import Classify
from onetrunk.serving.front.dialects.embeddings import Embeddings
from onetrunk.serving.front.dialects.kserve_v1 import KserveV1
from onetrunk.serving.front.dialects.systemone import SystemOne
from onetrunk.serving.front.dialects.tei import Tei
from onetrunk.serving.front.openapi import openapi_route
from onetrunk.serving.front.operations import Operation
from onetrunk.serving.front.service import Service


def json_operations(service: Service) -> list[Operation]:
    """Return the endpoints in the order of the OpenAPI document."""
    dialects = (
        Api(service),
        Embeddings(service),
        Tei(service),
        Classify(service),
        KserveV1(service),
        SystemOne(service),
    )
    return [operation for dialect in dialects for operation in dialect.operations()]


def json_routes(service: Service) -> list[Route]:
    """Return the routes of all endpoints, and of the document that describes them."""
    operations = json_operations(service)
    return [
        *(Route(one.path, service.counted(one.handler, one.errors), methods=[one.method]) for one in operations),
        openapi_route(service, operations),
    ]

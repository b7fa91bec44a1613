"""All endpoints for plain JSON: our own, and those that speak as other servers do."""

from __future__ import annotations

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from onetrunk.serving.front.api import Api
from onetrunk.serving.front.dialects.classify import Classify
from onetrunk.serving.front.dialects.embeddings import Embeddings
from onetrunk.serving.front.dialects.kserve_v1 import KserveV1
from onetrunk.serving.front.dialects.systemone import SystemOne
from onetrunk.serving.front.dialects.tei import Tei
from onetrunk.serving.front.openapi import openapi_route
from onetrunk.serving.front.operations import Operation, check_query
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
    return [*(_route(service, one) for one in operations), openapi_route(service, operations)]


def _route(service: Service, operation: Operation) -> Route:
    async def answer(request: Request) -> Response:
        check_query(operation, request.query_params)
        return await operation.handler(request)

    # A task's name has no colon: `{task}:predict` is another path, whatever the method.
    path = operation.path.replace("{task}", "{task:task}")
    return Route(path, service.counted(answer, operation.errors), methods=[operation.method])


class _TaskConvertor(StringConvertor):
    regex = "[^/:]+"


register_url_convertor("task", _TaskConvertor())

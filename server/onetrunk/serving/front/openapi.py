"""The OpenAPI document of the front, made from the schemas of its endpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any
from urllib.parse import urlencode

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from onetrunk.client.catalogue import Catalogue
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.serving.front.operations import Example, Operation
from onetrunk.serving.front.service import Service
from onetrunk.serving.front.triton import TritonDownError

VERSION = "3.1.0"
_REFERENCE = "#/components/schemas/{model}"
_ERRORS = {
    "4XX": "The request cannot be answered: the same request will fail again, unless the status is 429.",
    "5XX": "The server cannot answer at the moment.",
}


def openapi_route(service: Service, operations: Sequence[Operation]) -> Route:
    """Return the route of the document. The page that shows it is `/docs`."""

    async def document(request: Request) -> Response:
        try:
            catalogue = await service.catalogue()
        except (OneTrunkError, TritonDownError):
            catalogue = None  # the schemas are the same; only the examples need a server
        return JSONResponse(openapi(operations, catalogue))

    return Route("/openapi.json", service.counted(document), methods=["GET"])


def openapi(operations: Sequence[Operation], catalogue: Catalogue | None) -> dict[str, Any]:
    """Return the document.

    Args:
        operations: The endpoints.
        catalogue: What is served, for the examples; None leaves them out.
    """
    names = {adapter: at for at, adapter in enumerate(_types(operations))}
    inputs: list[tuple[Any, JsonSchemaMode, TypeAdapter[Any]]] = [
        (at, "validation", TypeAdapter(kind)) for kind, at in names.items()
    ]
    schemas, shared = TypeAdapter.json_schemas(inputs, ref_template=_REFERENCE, schema_generator=_Schemas)
    by_type = {kind: schemas[at, "validation"] for kind, at in names.items()}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        examples = operation.examples(catalogue) if catalogue is not None else {}
        described = _described(operation, by_type, examples)
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": VERSION,
        "info": {
            "title": "OneTrunk",
            "version": metadata.version("onetrunk"),
            "description": "Texts in, answers of many tasks out. The examples name tasks of this server.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in operations)],
        "paths": paths,
        "components": {"schemas": shared.get("$defs", {})},
    }


class _Schemas(GenerateJsonSchema):
    """Pydantic's generator, without titles that repeat names, and with docstrings in the places they speak of."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: Any) -> Any:
        """Describe a model by the first part of its docstring, and its fields by the lines of `Attributes`."""
        made = super().model_schema(schema)
        text, _, attributes = made.get("description", "").partition("Attributes:")
        made["description"] = " ".join(text.split())
        for name, meaning in _ATTRIBUTE.findall(attributes):
            made.get("properties", {}).get(name, {})["description"] = " ".join(meaning.split())
        return made


_ATTRIBUTE = re.compile(r"^    (\w+): (.+(?:\n     +.+)*)", re.MULTILINE)


def _types(operations: Sequence[Operation]) -> list[Any]:
    kinds = [kind for one in operations for kind in (one.request, one.answer, one.error) if kind is not None]
    return list(dict.fromkeys(kinds))


def _described(operation: Operation, schemas: Mapping[Any, Any], examples: Mapping[str, Example]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": f"{operation.method.lower()}{operation.path}".translate(_TO_NAME).strip("_"),
        "responses": {
            "200": {"description": "The answer.", "content": _json(schemas[operation.answer])},
            **{
                status: {"description": text, "content": _json(schemas[operation.error])}
                for status, text in _ERRORS.items()
            },
        },
    }
    if parameters := _parameters(operation, examples):
        described["parameters"] = parameters
    if operation.request is not None:
        content = _json(schemas[operation.request])
        if examples:
            content["application/json"]["examples"] = {
                name: {"summary": _target(operation, example), "value": example.body}
                for name, example in examples.items()
            }
        described["requestBody"] = {"required": True, "content": content}
    return described


_TO_NAME = str.maketrans({**dict.fromkeys("/.:", "_"), "{": "", "}": ""})


def _target(operation: Operation, example: Example) -> str:
    """Return the path and query to which an example is sent."""
    path = operation.path.replace("{task}", example.task or "")
    return f"{path}?{urlencode(example.query)}" if example.query else path


def _parameters(operation: Operation, examples: Mapping[str, Example]) -> list[dict[str, Any]]:
    first = next(iter(examples.values()), None)
    parameters = []
    if "{task}" in operation.path:
        path: dict[str, Any] = {"name": "task", "in": "path", "required": True, "schema": {"type": "string"}}
        parameters.append(path | ({"example": first.task} if first and first.task else {}))
    for name, meaning in operation.query.items():
        query: dict[str, Any] = {"name": name, "in": "query", "description": meaning, "schema": {"type": "string"}}
        parameters.append(query | ({"example": first.query[name]} if first and name in first.query else {}))
    return parameters


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}

"""The OpenAPI document of all routes, from the types of their bodies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import msgspec

from offramp.serving.endpoint import Endpoint, Page, body_types
from offramp.serving.settings import VERSION

REFUSALS = {
    "400": "The request cannot be read or answered as it is.",
    "401": "No key, or a wrong one.",
    "413": "The body is too large.",
    "422": "More rows than one request may have, or a value that the protocol refuses so.",
    "429": "The server is full; Retry-After says when to try again.",
    "503": "The server starts or ends, or no process that runs the model lives.",
    "504": "No answer within the server's time limit.",
}


def openapi(modules: Sequence[ModuleType]) -> dict[str, Any]:
    """Return the document of the modules' endpoints and pages, and of the server's own pages."""
    endpoints = [endpoint for module in modules for endpoint in getattr(module, "ENDPOINTS", ())]
    pages = [page for module in modules for page in getattr(module, "PAGES", ())]
    types = [kind for endpoint in endpoints for side in (endpoint.takes, endpoint.gives) for kind in body_types(side)]
    types += [page.gives for page in pages]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    left = iter(schemas)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        takes, gives = _schema(endpoint.takes, left), _schema(endpoint.gives, left)
        _add(paths, endpoint.paths, "post", _endpoint(endpoint, takes, gives))
    for page in pages:
        _add(paths, page.paths, "get", _operation(page, next(left)))
    for path, summary in OWN_PAGES.items():
        ok = {"200": {"description": "Success."}, "503": {"description": "The server is not ready."}}
        paths.setdefault(path, {})["get"] = {"summary": summary, "responses": ok, "security": []}
    return {
        "openapi": "3.1.0",
        "info": {"title": "offramp", "version": VERSION},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _schema(side: Any, schemas: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Return the next schema, or for several types any of the next ones."""
    if not isinstance(side, tuple):
        return next(schemas)
    return {"anyOf": [next(schemas) for _ in side]}


OWN_PAGES = {
    "/": "Whether the server is ready.",
    "/health": "Whether the server is ready.",
    "/healthz": "Whether the server is ready.",
    "/ping": "Whether the server is ready.",
    "/readyz": "Whether the server is ready.",
    "/livez": "Whether the server runs.",
    "/v2/health/live": "Whether the server runs (Open Inference Protocol).",
    "/metrics": "Metrics for Prometheus.",
    "/ui": "A page for people.",
}


def _add(paths: dict[str, dict[str, Any]], names: Sequence[str], method: str, operation: dict[str, Any]) -> None:
    for name in names:
        path = re.sub(r"{(\w+):\w+}", r"{\1}", name)
        parameters = [
            {"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}
            for parameter in re.findall(r"{(\w+)}", path)
        ]
        paths.setdefault(path, {})[method] = {**operation, **({"parameters": parameters} if parameters else {})}


def _operation(route: Endpoint | Page, gives: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": gives}}
    return {"summary": route.summary, "responses": {"200": {"description": "The answer.", "content": content}}}


def _endpoint(endpoint: Endpoint, takes: dict[str, Any], gives: dict[str, Any]) -> dict[str, Any]:
    operation = _operation(endpoint, gives)
    operation["tags"] = [endpoint.protocol]
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": takes}}}
    operation["responses"] |= {status: {"description": text} for status, text in REFUSALS.items()}
    return operation

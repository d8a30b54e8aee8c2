"""The description of our topics: as AsyncAPI for programs, and as a page without scripts for people."""

from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse

from shared.asyncapi import always_there, document

router = APIRouter(include_in_schema=False)


@router.get("/asyncapi.json")
async def asyncapi(request: Request) -> JSONResponse:
    """The document, with the topics' real names."""
    return JSONResponse(_document(request))


@router.get("/asyncapi")
async def page(request: Request) -> HTMLResponse:
    """The same to read."""
    return HTMLResponse("\n".join(_page(_document(request))))


def _document(request: Request) -> dict[str, Any]:
    return document(request.app.state.topics)


def _page(described: dict[str, Any]) -> Iterator[str]:
    yield "<!DOCTYPE html><html lang='en'><meta charset='utf-8'>"
    yield f"<title>{escape(described['info']['title'])}</title>"
    yield f"<h1>{escape(described['info']['title'])}</h1>"
    yield f"<p>{escape(described['info']['description'])} <a href='asyncapi.json'>AsyncAPI 3.0</a></p>"
    messages, schemas = described["components"]["messages"], described["components"]["schemas"]
    for channel in described["channels"].values():
        yield f"<h2><code>{escape(channel['address'])}</code></h2><p>{escape(channel['description'])}</p>"
        for kind in channel["messages"]:
            yield f"<h3><code>{escape(kind)}</code></h3><p>{escape(messages[kind]['summary'])}</p>"
            yield from _fields(schemas.get(messages[kind]["title"], {}))


def _fields(schema: dict[str, Any]) -> Iterator[str]:
    """A table of a record's fields; a dead letter has none."""
    if not schema:
        return
    yield "<table border='1' cellpadding='4'><tr><th>field</th><th>required</th><th>meaning</th></tr>"
    for name, field in schema["properties"].items():
        required = "yes" if name in always_there(schema) else "no"
        meaning = escape(field.get("description", ""))
        yield f"<tr><td><code>{escape(name)}</code></td><td>{required}</td><td>{meaning}</td></tr>"
    yield "</table>"

"""The API's description as a page to try it out (requirement C5): Swagger UI, served by ourselves alone."""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, Response

router = APIRouter(include_in_schema=False)

_ASSETS = Path(str(files("fastapi_offline"))) / "static"
# Nothing from elsewhere, no script within the page; Swagger UI puts styles into its elements, and icons as data.
_MAY_LOAD = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_KEEP = {"Cache-Control": "public, max-age=3600"}
# Addresses are relative, so that the page works behind a proxy that puts something in front.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>Allegro Orders Backup: REST API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null});\n'


@router.get("/docs")
async def page() -> HTMLResponse:
    """Every endpoint, with a form to call it."""
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _MAY_LOAD})


@router.get("/docs/start.js")
async def start() -> Response:
    """Apart from the page, whose policy allows no script in it."""
    return Response(_START, media_type="text/javascript", headers=_KEEP)


@router.get("/docs/swagger-ui-bundle.js")
async def script() -> FileResponse:
    """Swagger UI."""
    return FileResponse(_ASSETS / "swagger-ui-bundle.js", media_type="text/javascript", headers=_KEEP)


@router.get("/docs/swagger-ui.css")
async def style() -> FileResponse:
    """Its looks."""
    return FileResponse(_ASSETS / "swagger-ui.css", media_type="text/css", headers=_KEEP)

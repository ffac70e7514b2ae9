"""The page on which every call can be tried, with all that it needs: no other host is asked for a script."""

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

PATH = "/docs"


def install(app: FastAPI) -> None:
    """Add the page to an app that was made with no `docs_url` of its own.

    It names what it needs relative to itself: behind a proxy the app's own address is not the one a browser knows.
    """

    @app.get(PATH, include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon-32x32.png",
        )

    app.mount(PATH, StaticFiles(packages=[("fastapi_swagger", "resources")]))

"""What a browser is shown: a page to denoise on, and one on which every call can be tried.

Neither asks another host for anything. Both name what they need relative to themselves, for behind a proxy the app's
own address is not the one that a browser knows.
"""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles

PATH = "/docs"
WEB = "/web"  # what the page at `/` is made of
_FILES = Path(__file__).with_name("web")
# No script, style, picture or answer from elsewhere; results and uploads are shown from the page's own memory.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def home() -> FileResponse:
    """The page at `/`, for browsers."""
    told = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
        "Vary": "Accept",
    }
    return FileResponse(_FILES / "page.html", headers=told)


def install_home(app: FastAPI) -> None:
    """Add what the page at `/` is made of; `routes/health.py` answers for the page itself."""
    app.mount(WEB, _Files(directory=_FILES))


def install(app: FastAPI) -> None:
    """Add the page of calls to an app that was made with no `docs_url` of its own."""

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


class _Files(StaticFiles):
    """Asked about each time: a release changes them together."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

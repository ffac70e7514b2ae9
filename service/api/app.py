"""Puts the API together: its layers, its calls, and what lives as long as the process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from service.api import openapi, problems
from service.api.limits import BodyLimit
from service.api.routes import denoise, health, inference, jobs, models, webhooks
from service.api.services import Services
from service.api.timing import Timing
from service.blobs import open_store
from service.broker.queue import QueueClient
from service.intake import Intake
from service.metrics import ApiMetrics
from service.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """The ASGI app over the broker that `settings.redis_url` names; it loads no decoder and no network.

    Raises:
        ValueError: no broker is named. Starting one is the command line's business.
        NeedsExtra, UnusableBlobUrl: there is no such place for blobs.
    """
    url = settings.redis_url
    if url is None:
        raise ValueError("redis_url is not set; the API needs a broker")
    metrics = ApiMetrics()
    store = open_store(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        spool = settings.data_dir / "spool"
        spool.mkdir(parents=True, exist_ok=True)
        async with QueueClient(url, settings) as queue:
            services = app.state.services = Services(
                settings=settings,
                queue=queue,
                store=store,
                intake=Intake(settings, queue, store),
                metrics=metrics,
                spool=spool,
            )
            yield
            await services.finish()

    app = _Api(
        title="Quietframe",
        version=_version(),
        summary=openapi.SUMMARY,
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        webhooks=webhooks.router,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    for router in (denoise.router, jobs.router, models.router, health.router, inference.router):
        app.include_router(router)
    problems.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_upload_bytes)
    app.add_middleware(Timing, metrics=metrics)  # added last, so it is outermost
    return app


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The page without FastAPI's own 422 answer, which nobody here gives: `problems` answers in its place."""
        if self.openapi_schema is None:
            page = super().openapi()
            for item in (*page["paths"].values(), *page.get("webhooks", {}).values()):
                for call in item.values():
                    if "HTTPValidationError" in str(call["responses"].get("422")):
                        del call["responses"]["422"]
            for name in ("HTTPValidationError", "ValidationError"):
                page["components"]["schemas"].pop(name, None)
        assert self.openapi_schema is not None
        return self.openapi_schema


def _operation_id(route: APIRoute) -> str:
    """The function's name: generated clients get `get_job`, not a path with its slashes taken out."""
    return route.name


def _version() -> str:
    try:
        return version("quietframe")
    except PackageNotFoundError:
        return "0"

"""Puts the API together: its layers, its calls, and what lives as long as the process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from service.access.gate import Gate, open_ring
from service.access.own import OwnJobs
from service.access.quotas import Quotas
from service.api import openapi, page, problems
from service.api.access import Access, cors_options
from service.api.limits import BodyLimit
from service.api.routes import admin, denoise, health, inference, jobs, models, webhooks
from service.api.services import Services
from service.api.timing import Timing
from service.blobs import open_store
from service.intake import Intake
from service.metrics import ApiMetrics
from service.settings import Settings
from service.telemetry import tracing

_ADMIN_BODY_BYTES = 64 * 1024


def create_app(settings: Settings) -> FastAPI:
    """The ASGI app over the broker that `settings.redis_url` names; it loads no decoder and no network.

    Raises:
        ValueError: no broker is named. Starting one is the command line's business.
        NeedsExtra, UnusableBlobUrl: there is no such place for blobs.
        BadKeysFile: callers are to show keys, and there are none to be read.
    """
    url = settings.redis_url
    if url is None:
        raise ValueError("redis_url is not set; the API needs a broker")
    metrics = ApiMetrics()
    store = open_store(settings)
    ring = open_ring(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        spool = settings.data_dir / "spool"
        spool.mkdir(parents=True, exist_ok=True)
        async with OwnJobs(url, settings, ring) as queue:
            quotas = Quotas(queue)
            services = app.state.services = Services(
                settings=settings,
                queue=queue,
                store=store,
                intake=Intake(settings, queue, store, quotas),
                gate=Gate(settings, ring, quotas),
                metrics=metrics,
                spool=spool,
            )
            yield
            await services.finish()
            # Here, for the server ends the process by the very signal that stopped it, with no time for anything more.
            await asyncio.to_thread(tracing.stop)

    app = _Api(
        asks_for_keys=ring is not None,
        title="Quietframe",
        version=_version(),
        summary=openapi.SUMMARY,
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        webhooks=webhooks.router,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    for router in (denoise.router, jobs.router, models.router, health.router, health.probes, inference.router):
        app.include_router(router)
    if settings.admin_port is None:
        app.include_router(health.figures)
        if ring is not None:  # for where nobody is asked for a key, everybody would be the operator
            app.include_router(admin.router)
    page.install(app)
    page.install_home(app)
    problems.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_upload_bytes)
    app.add_middleware(Access)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, **cors_options(settings.cors_origins))  # a browser asks first, without a key
    app.add_middleware(Timing, metrics=metrics)  # added last, so it is outermost
    return app


def create_admin_app(services: Services) -> FastAPI:
    """What operators and scrapers ask, on a port of its own: figures without a key, calls with one if keys are on."""
    app = FastAPI(
        title="Quietframe, for operators", version=_version(), docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.services = services
    for router in (health.figures, health.probes, admin.router):
        app.include_router(router)
    page.install(app)
    problems.install(app)
    app.add_middleware(BodyLimit, max_bytes=_ADMIN_BODY_BYTES)
    app.add_middleware(Access, also_open=frozenset({"/metrics"}))
    app.add_middleware(Timing, metrics=services.metrics)
    return app


class _Api(FastAPI):
    def __init__(self, *, asks_for_keys: bool, **said: Any) -> None:
        super().__init__(**said)
        self._asks_for_keys = asks_for_keys

    def openapi(self) -> dict[str, Any]:
        """The page without FastAPI's own 422 answer, which nobody here gives: `problems` answers in its place."""
        if self.openapi_schema is None:
            page = super().openapi()
            openapi.tell_of_access(page, keys=self._asks_for_keys)
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

"""What every call leans on: made once when the app starts, and handed to whoever asks for it."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from service.blobs import BlobStore
from service.broker.queue import QueueClient
from service.intake import Intake
from service.metrics import ApiMetrics
from service.settings import Settings


@dataclass(slots=True, kw_only=True)
class Services:
    settings: Settings
    queue: QueueClient
    store: BlobStore
    intake: Intake
    metrics: ApiMetrics
    spool: Path
    draining: asyncio.Event = field(default_factory=asyncio.Event)  # set: the process is about to stop


def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


UseServices = Annotated[Services, Depends(_services)]

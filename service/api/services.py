"""How a call gets at what it leans on."""

from typing import Annotated

from fastapi import Depends, Request

from service.services import Services

__all__ = ["Services", "UseServices"]


def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


UseServices = Annotated[Services, Depends(_services)]

"""Is the part of the service that runs in this container alive, or ready? For orchestrators that ask by a command."""

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Literal

from models.errors import QuietframeError
from service.settings import Settings
from trtbuild.gpus import nvidia_gpus

Part = Literal["api", "worker"]

_PATIENCE_S = 4.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nobody can be asked at these


class Unwell(QuietframeError):
    """It is not what it was asked to be; the message says why."""


def check(part: Part, settings: Settings, *, ready: bool) -> None:
    """Ask the API, or all workers that this environment's `quietframe worker` keeps, whether they live, or are ready.

    Raises:
        Unwell: one does not, or does not answer.
    """
    for url in _urls(part, settings, "readyz" if ready else "livez"):
        try:
            with _direct().open(url, timeout=_PATIENCE_S):
                pass
        except urllib.error.HTTPError as err:
            raise Unwell(f"{url}: {err.code} {err.read(2000).decode(errors='replace').strip()}") from None
        except OSError as err:
            raise Unwell(f"{url}: {getattr(err, 'reason', err)}") from None


def _urls(part: Part, settings: Settings, path: str) -> Iterator[str]:
    host = _EVERYWHERE.get(settings.host, settings.host)
    host = f"[{host}]" if ":" in host else host
    if part == "api":
        yield f"{'https' if settings.tls_cert_file else 'http'}://{host}:{settings.port}/{path}"
        return
    first_port = settings.worker_metrics_port
    if first_port is None:
        raise Unwell("workers are asked at QUIETFRAME_WORKER_METRICS_PORT, which is not set")
    for number in range(settings.workers or max(1, len(nvidia_gpus()))):
        yield f"http://{host}:{first_port + number}/{path}"


def _direct() -> urllib.request.OpenerDirector:
    """No proxy knows of ourselves, and the certificate is for a name that is not this one."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting))

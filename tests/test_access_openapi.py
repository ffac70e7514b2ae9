"""A service that asks for keys does what its OpenAPI document says, too: with a key, and to those without."""

import tempfile
from pathlib import Path

import pytest
import schemathesis
from api_support import PlayedWorker, served
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from redis import Redis
from schemathesis.checks import CHECKS, load_all_checks

from service.access.keys import Scope, add_key, new_key
from service.api.app import create_app
from service.settings import Settings

load_all_checks()
# As in test_openapi.py, which tells why.
EXCLUDED = ["positive_data_acceptance", "negative_data_rejection", "unsupported_method"]


@pytest.fixture(scope="module")
def place(modules_redis_url, tmp_path_factory):
    with Redis.from_url(modules_redis_url) as link:
        link.flushall()  # jobs of other tests have their blobs elsewhere
    data_dir = tmp_path_factory.mktemp("openapi")
    key, token = new_key("fuzz", list(Scope))
    add_key(data_dir / "keys.json", key)
    settings = Settings(
        port=0, data_dir=data_dir, redis_url=modules_redis_url, sync_timeout_s=2, requests_per_minute=10**6
    )
    with PlayedWorker(settings), served(settings) as (client, _):
        yield str(client.base_url), token


def document():
    with tempfile.TemporaryDirectory() as folder:
        add_key(Path(folder) / "keys.json", new_key("fuzz", list(Scope))[0])
        return create_app(Settings(redis_url="redis://nowhere", data_dir=folder)).openapi()


# One of each kind: asking, handing in, calling off, and what is for operators. test_openapi.py goes through all.
PATHS = ["/livez", "/jobs", "/jobs/image", "/jobs/{job_id}", "/models", "/metrics", "/admin/dead-letters"]
schema = schemathesis.openapi.from_dict(document()).include(path=PATHS)


@schema.parametrize()
@hypothesis_settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_each_operation_keeps_to_the_document_and_refuses_who_shows_no_key(case, place):
    url, token = place
    case.call_and_validate(
        base_url=url,
        headers={"Authorization": f"Bearer {token}"},
        excluded_checks=[CHECKS.get_one(name) for name in EXCLUDED],
        timeout=20,
    )

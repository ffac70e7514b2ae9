"""The API does what its OpenAPI document says, whatever is sent."""

import pytest
import schemathesis
from api_support import PlayedWorker, served
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from schemathesis.checks import CHECKS, load_all_checks

from service.api.app import create_app
from service.settings import Settings

load_all_checks()
# What is well-formed by the document may still be no image, and name no model and no job.
UNJUST = {"positive_data_acceptance"}
# A form's fields are texts, and some texts are more than one type: "0" is false too.
UNJUST_TO_FORMS = {"negative_data_rejection"}
# To others than POST, what stands there is the id of a job.
SHADOWED = {"/jobs/image", "/jobs/video"}

schema = schemathesis.openapi.from_dict(create_app(Settings(redis_url="redis://nowhere")).openapi())


@pytest.fixture(scope="module")
def url(modules_redis_url, tmp_path_factory):
    settings = Settings(
        port=0, data_dir=tmp_path_factory.mktemp("openapi"), redis_url=modules_redis_url, sync_timeout_s=2
    )
    with PlayedWorker(settings), served(settings) as (client, _):
        yield str(client.base_url)


@schema.parametrize()
@hypothesis_settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_each_operation_keeps_to_the_document(case, url):
    unjust = UNJUST | (UNJUST_TO_FORMS if case.media_type == "multipart/form-data" else set())
    unjust |= {"unsupported_method"} if case.path in SHADOWED else set()
    excluded = [CHECKS.get_one(name) for name in unjust]
    case.call_and_validate(base_url=url, excluded_checks=excluded, timeout=20)

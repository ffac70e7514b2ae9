"""Does a minute's quota hold, however many processes count it, and while nobody counts but this one?"""

import asyncio
import contextlib
import time

import pytest
from api_support import noisy_png, served
from redis import Redis

from service.access.callers import Caller, Visit, visiting
from service.access.keys import Scope
from service.access.quotas import PIXELS, REQUESTS, Quotas
from service.broker.queue import QueueClient
from service.errors import NotReady, RateExceeded
from service.settings import Settings

pytestmark = pytest.mark.anyio

NOWHERE = "redis://127.0.0.1:1"
PATIENCE_S = 60.0


def visit_of(payer: str = "somebody", *, requests: int = 0, pixels: int = 0) -> Visit:
    caller = Caller(payer=payer, scopes=frozenset(Scope), requests_per_minute=requests, pixels_per_minute=pixels)
    return Visit(caller)


class Away:
    """A broker that does not answer, and says how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def spend(self, costs, *, window_s):
        self.asked += 1
        raise NotReady("it is away")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def counting(where: str, url: str):
    """The quotas as Redis counts them, and as a process does by itself."""
    if where == "alone":
        yield Quotas(Away())
        return
    async with QueueClient(url, Settings()) as queue:
        yield Quotas(queue)


@pytest.fixture(params=["redis", "alone"])
def where(request):
    return request.param


async def test_a_minutes_worth_is_to_be_had_at_once_and_no_more(where, fresh_redis_url):
    async with counting(where, fresh_redis_url) as quotas:
        visit = visit_of(requests=3)
        for left in (2, 1, 0):
            await quotas.spend_request(visit)
            assert visit.standings[REQUESTS].remaining == left
        with pytest.raises(RateExceeded, match="3 requests a minute") as refused:
            await quotas.spend_request(visit)
        assert 1 <= refused.value.retry_after_s <= 20
        other = visit_of("another", requests=3)
        await quotas.spend_request(other)
        assert other.standings[REQUESTS].remaining == 2


async def test_a_refused_call_costs_nothing_and_the_quota_fills_again(where, fresh_redis_url):
    async with counting(where, fresh_redis_url) as quotas:
        visit = visit_of(pixels=60_000)  # one a millisecond
        deadline = time.monotonic() + PATIENCE_S
        with visiting(visit):
            await quotas.spend_pixels(60_000)
            while time.monotonic() < deadline:
                with contextlib.suppress(RateExceeded):
                    await quotas.spend_pixels(300)
                    return
                await asyncio.sleep(0.01)
        pytest.fail("it never filled")


async def test_a_job_larger_than_the_quota_is_let_in_when_that_is_whole_and_paid_for_after(where, fresh_redis_url):
    async with counting(where, fresh_redis_url) as quotas:
        visit = visit_of(pixels=1000)
        with visiting(visit):
            await quotas.spend_pixels(2500)
            assert visit.standings[PIXELS].remaining == 0
            with pytest.raises(RateExceeded, match="1 pixels will fit") as refused:
                await quotas.spend_pixels(1)
            assert 60 < refused.value.retry_after_s <= 91
            with pytest.raises(RateExceeded) as refused:
                await quotas.spend_pixels(2500)
            assert 120 < refused.value.retry_after_s <= 150


async def test_what_is_given_back_can_be_spent_again(where, fresh_redis_url):
    async with counting(where, fresh_redis_url) as quotas:
        visit = visit_of(pixels=1000)
        with visiting(visit):
            await quotas.spend_pixels(900)
            await quotas.give_back_pixels(900)
            assert visit.standings[PIXELS].remaining == 1000
            await quotas.spend_pixels(1000)


async def test_without_a_bound_nothing_is_counted(fresh_redis_url):
    broker = Away()
    quotas = Quotas(broker)
    visit = visit_of()
    await quotas.spend_request(visit)
    with visiting(visit):
        await quotas.spend_pixels(10**12)
    await quotas.spend_pixels(1)  # nobody's call
    assert (broker.asked, visit.standings) == (0, {})


async def test_many_processes_give_out_one_quota_between_them(fresh_redis_url, monkeypatch):
    monkeypatch.setattr("service.broker.queue._COUNT_S", PATIENCE_S)  # none of them is to count alone
    quota, began = 60, time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(QueueClient(fresh_redis_url, Settings())) for _ in range(4)]

        async def ask(client: QueueClient) -> bool:
            try:
                await Quotas(client).spend_request(visit_of(requests=quota))
            except RateExceeded:
                return False
            return True

        passed = sum(await asyncio.gather(*(ask(client) for client in clients for _ in range(40))))
    assert quota <= passed <= quota + 1 + (time.monotonic() - began) * quota / 60


async def test_what_is_kept_goes_away_by_itself(fresh_redis_url):
    async with counting("redis", fresh_redis_url) as quotas:
        await quotas.spend_request(visit_of(requests=60))
    with Redis.from_url(fresh_redis_url, decode_responses=True) as link:
        (name,) = link.scan_iter("quietframe:quota:*")
        assert name == "quietframe:quota:requests:somebody"
        assert 0 <= link.pttl(name) <= 1000


async def test_a_broker_that_is_away_opens_no_gate_and_closes_none(fresh_redis_url, caplog):
    clock = Clock()
    async with QueueClient(fresh_redis_url, Settings()) as queue:
        broker, away = queue, Away()
        quotas = Quotas(queue, clock=clock)
        visit = visit_of(requests=3)
        await quotas.spend_request(visit)
        await quotas.spend_request(visit)

        quotas._counter = away
        await quotas.spend_request(visit)  # it goes on from where the broker saw the caller last ...
        with pytest.raises(RateExceeded):  # ... so that there is one left, and not three
            await quotas.spend_request(visit)
        assert away.asked == 1, "who did not answer is not asked again at once"
        assert caplog.text.count("counted by this process alone") == 1
        clock.now += 25
        await quotas.spend_request(visit)
        assert away.asked == 2

        quotas._counter = broker
        clock.now += 2
        await quotas.spend_request(visit)
        with pytest.raises(RateExceeded):  # the server's clock has not moved on
            await quotas.spend_request(visit)
        assert "counted by the broker again" in caplog.text


async def test_a_server_that_cannot_be_reached_is_a_broker_that_is_away():
    async with QueueClient(NOWHERE, Settings()) as queue:
        quotas = Quotas(queue)
        visit = visit_of(requests=1)
        await quotas.spend_request(visit)
        with pytest.raises(RateExceeded):
            await quotas.spend_request(visit)


def test_calls_over_http_are_told_how_they_stand_and_when_to_come_again(tmp_path, fresh_redis_url):
    settings = Settings(data_dir=tmp_path, redis_url=fresh_redis_url, port=0, requests_per_minute=2, drain_s=1)
    with served(settings) as (client, _):
        first = client.get("/jobs")
        assert first.headers["RateLimit-Policy"] == '"requests";q=2;w=60'
        assert first.headers["RateLimit"] == '"requests";r=1;t=30'
        assert client.get("/jobs").headers["RateLimit"] == '"requests";r=0;t=30'
        over = client.get("/jobs")
        assert over.status_code == 429
        assert over.headers["Content-Type"] == "application/problem+json"
        assert over.json()["code"] == "rate_limited"
        assert over.json()["retryable"] is True
        assert 1 <= int(over.headers["Retry-After"]) <= 30
        assert over.headers["RateLimit"].startswith('"requests";r=0;t=')
        tensors = client.get("/v2/models/auto")
        assert (tensors.status_code, tensors.headers["Quietframe-Code"]) == (429, "rate_limited")
        assert list(tensors.json()) == ["error"]
        for path in ("/livez", "/", "/v2/health/live"):
            assert client.get(path).status_code == 200


def test_pixels_are_counted_once_for_a_job_and_not_for_what_is_refused(tmp_path, fresh_redis_url):
    settings = Settings(data_dir=tmp_path, redis_url=fresh_redis_url, port=0, pixels_per_minute=2000, drain_s=1)
    noisy = {"file": noisy_png()}  # 32x24: 768 pixels
    key = {"Idempotency-Key": "a"}
    with served(settings) as (client, _):

        def left() -> str:
            return client.get("/jobs").headers["RateLimit"].partition("r=")[2].partition(";")[0]

        assert client.post("/jobs/image", files=noisy, headers=key).status_code == 202
        policy = client.get("/jobs").headers["RateLimit-Policy"]
        assert policy == '"pixels";q=2000;qu="pixels";w=60'
        after_one = int(left())
        assert 1232 <= after_one < 2000
        assert client.post("/jobs/image", files=noisy, headers=key).status_code == 202  # the same job
        assert client.post("/jobs/image", files=noisy, data={"sigma": "900"}).status_code == 422
        assert client.post("/jobs/image", files={"file": noisy_png(seed=1)}, headers=key).status_code == 422
        assert int(left()) >= after_one
        answers = [client.post("/jobs/image", files=noisy) for _ in range(8)]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert "768 pixels will fit" in refused.json()["detail"]
        assert '"pixels";r=' in refused.headers["RateLimit"]

"""Live frames: through the client, the API and a worker's port, and back."""

import asyncio
import functools
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from fractions import Fraction

import av
import grpc
import numpy as np
import pytest
from api_support import served, short_video
from ports import free_port
from typer.testing import CliRunner

from models.catalogue import CATALOGUE
from service.__main__ import app
from service.broker.card import WorkerCard
from service.broker.lease import LeaseClient
from service.client import AsyncClient, Client, ServerAway, ServerProblem
from service.demo import moving_clip, read_photo, running_service, with_noise
from service.errors import BadInput
from service.live.feed import feed_live
from service.live.host import CannotHost, LiveHost
from service.media.video import VideoReader
from service.pipeline.denoiser import Denoiser, to_pixels, to_planes
from service.pipeline.live import LiveSetup, frames_in_flight, restore_live
from service.pipeline.turns import Turns, Urgency
from service.rpc.generated.quietframe.v1 import denoiser_pb2 as pb
from service.rpc.generated.quietframe.v1.denoiser_pb2_grpc import DenoiserStub
from service.rpc.relay import RESTORE, TOKEN_KEY
from service.settings import Settings
from trtbuild.engine import EngineFailed

PATIENCE_S = 60.0
SPEC = CATALOGUE["fitvnet.camera"]
REACH = SPEC.frames // 2
WIDTH, HEIGHT = 24, 16
SETUP = pb.StreamSetup(width=WIDTH, height=HEIGHT)


class HalvingStage:
    """Gives the middle of each window; the first stage halves it. While `go` is clear it waits in there."""

    backend, precision, batch, contexts = "played", "fp32", 1, 1

    def __init__(self, stage, go, share):
        self._stage, self._go, self._share = stage, go, np.float32(share)
        self.entered = threading.Event()
        self.fails = False

    def denoise(self, noisy, sigma):
        self.entered.set()
        if self.fails:
            raise EngineFailed("the device fell off the bus")
        assert self._go.wait(PATIENCE_S)
        count, _, height, width = noisy.shape
        windows = noisy.reshape(count, self._stage.frames, self._stage.planes_in, height, width)
        middle = windows[:, self._stage.frames // 2, :3] * self._share
        return np.tile(middle, (1, 2, 1, 1))[:, : self._stage.planes_out]


class PlayedShelf:
    def __init__(self):
        self.go = threading.Event()
        self.go.set()
        shares = (0.5, 1, 1)
        self.stages = [HalvingStage(stage, self.go, share) for stage, share in zip(SPEC.stages, shares, strict=True)]

    def denoiser(self, name):
        assert name == SPEC.name
        return Denoiser(SPEC, self.stages, 512)


def frame(index, dtype=np.uint8):
    return np.random.default_rng(index).integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, 3), dtype, endpoint=True)


def halved(noisy):
    return to_pixels(to_planes(noisy) * np.float32(0.5), noisy.dtype, np.float32(np.iinfo(noisy.dtype).max))


def pixels_of(restored, dtype=np.uint8):
    return np.frombuffer(restored.pixels, dtype).reshape(HEIGHT, WIDTH, 3)


def until(holds):
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def settings(tmp_path_factory, modules_redis_url):
    return Settings(
        data_dir=tmp_path_factory.mktemp("live"),
        redis_url=modules_redis_url,
        port=0,
        live_streams=1,
        live_idle_s=PATIENCE_S,
        max_message_bytes=1 << 20,
        drain_s=5,
    )


@pytest.fixture(scope="module")
def url(settings):
    with served(settings) as (client, _):
        yield str(client.base_url)


class PlayedHost:
    """A worker's live port, with what it needs around it."""

    def __init__(self, settings):
        self.settings = settings
        self.shelf = PlayedShelf()
        self.gave_up = threading.Event()
        self.host = LiveHost(settings, self.shelf, self.gave_up.set)
        self.leases = LeaseClient(settings.redis_url, settings, "played")

    def announce(self, **told):
        place = self.host.place.model_copy(update=told)
        self.leases.announce(WorkerCard(id="played", pid=1, host="elsewhere", started_at=0, ready=True, live=place))

    def close(self):
        self.shelf.go.set()
        self.host.stop(0)
        self.leases.close()


@contextmanager
def hosting(settings):
    played = PlayedHost(settings)
    try:
        yield played
    finally:
        played.close()


@pytest.fixture
def host(settings, fresh_redis_url, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    with hosting(settings) as played:
        played.announce()
        yield played


@pytest.fixture
def client(url):
    with Client(url, timeout_s=PATIENCE_S) as made:
        yield made


class Source:
    """Frames that are there when a test puts them, until it puts None."""

    def __init__(self):
        self.frames = queue.SimpleQueue()
        self.taken = 0

    def put(self, *frames):
        for one in frames:
            self.frames.put(one)

    def __iter__(self):
        while (one := self.frames.get(timeout=PATIENCE_S)) is not None:
            self.taken += 1
            yield one


def stream(client, frames, **fields):
    return client.stream(frames, width=WIDTH, height=HEIGHT, timeout_s=PATIENCE_S, **fields)


def test_a_frame_is_back_as_soon_as_those_are_there_that_its_window_reaches(host, client):
    source = Source()
    source.put(*(frame(index) for index in range(REACH + 1)))
    with stream(client, source) as live:
        assert (live.start.model, live.start.backend, live.start.latency_frames) == (SPEC.name, "played", REACH)
        answers = iter(live)
        first = next(answers)  # and no more was sent than this one needs
        assert source.taken == REACH + 1
        source.put(frame(REACH + 1), None)
        rest = list(answers)
    made = [first, *rest]
    assert [one.number for one in made] == list(range(REACH + 2))
    for one in made:
        np.testing.assert_array_equal(pixels_of(one), halved(frame(one.number)))
        assert one.latency_s > 0


def test_sixteen_bits_and_an_event_loop_do_too(host, url):
    async def camera():
        for index in range(5):
            yield frame(index, np.uint16)

    async def restored(source):
        async with AsyncClient(url) as client, stream(client, source, pixel_format="rgb16", strength=1) as live:
            return [one async for one in live]

    plain = [frame(index, np.uint16) for index in range(5)]
    for made in (asyncio.run(restored(camera())), asyncio.run(restored(plain))):
        assert [one.number for one in made] == list(range(5))
        for one, noisy in zip(made, plain, strict=True):
            np.testing.assert_array_equal(pixels_of(one, np.uint16), halved(noisy))


def test_a_stream_without_frames_ends_without_any(host, client):
    with stream(client, []) as live:
        assert list(live) == []


def test_who_is_too_fast_is_held_back(host, client):
    host.shelf.go.clear()
    source = Source()
    source.put(*(frame(index) for index in range(40)), None)
    with stream(client, source) as live:
        bound = live.start.frames_in_flight
        until(lambda: source.taken == bound)
        assert host.shelf.stages[0].entered.wait(PATIENCE_S)
        assert source.taken == bound
        host.shelf.go.set()
        answers = iter(live)
        next(answers)
        assert source.taken <= bound + 1
        assert len(list(answers)) == 39


def test_a_worker_reads_no_further_ahead_than_it_says():
    shelf, read = PlayedShelf(), 0
    denoiser = shelf.denoiser(SPEC.name)

    def frames():
        nonlocal read
        while True:
            read += 1
            yield frame(read).tobytes()

    setup = LiveSetup(width=WIDTH, height=HEIGHT, dtype=np.dtype(np.uint8))
    restored = restore_live(denoiser, setup, frames())
    for answered in range(1, 6):
        next(restored)
        assert read <= answered + frames_in_flight(denoiser)
    restored.close()


def test_a_source_that_fails_ends_the_stream_with_its_own_error(host, client, url):
    def unplugged():
        yield frame(0)
        raise OSError("the camera is gone")

    with pytest.raises(OSError, match="the camera is gone"), stream(client, unplugged()) as live:
        list(live)

    async def in_a_loop():
        async with AsyncClient(url) as other, stream(other, unplugged()) as live:
            async for _ in live:
                pass

    with pytest.raises(OSError, match="the camera is gone"):
        asyncio.run(in_a_loop())


def test_where_all_places_are_taken_one_more_is_told_so_at_once_until_one_leaves(host, client, url):
    source = Source()
    with stream(client, source), Client(url) as other:
        with pytest.raises(ServerProblem) as full:
            stream(other, [frame(0)])
        assert (full.value.code, full.value.status, full.value.retryable) == ("streams_full", 503, True)
    source.put(None)
    until(lambda: host.host.place.taken == 0)
    with Client(url) as other, stream(other, [frame(0)]) as live:
        assert len(list(live)) == 1


def test_a_deadline_ends_a_stream_and_frees_its_place(host, client):
    source = Source()
    with pytest.raises(ServerProblem) as late, client.stream(source, width=WIDTH, height=HEIGHT, timeout_s=1) as live:
        list(live)
    assert late.value.code == "deadline_exceeded"
    until(lambda: host.host.place.taken == 0)
    source.put(None)


def test_a_caller_who_leaves_stops_the_network(host, client):
    host.shelf.go.clear()
    source = Source()
    source.put(*(frame(index) for index in range(4)))
    with stream(client, source):
        assert host.shelf.stages[0].entered.wait(PATIENCE_S)
    until(lambda: host.host.place.taken == 0)
    host.shelf.go.set()
    source.put(None)
    until(lambda: not any(thread.name == "read-ahead" for thread in threading.enumerate()))
    assert not host.shelf.stages[1].entered.is_set()


@contextmanager
def stub_of(client):
    with grpc.insecure_channel(f"127.0.0.1:{client._http.get('/').json()['grpc_port']}") as channel:
        yield DenoiserStub(channel)


def first(**said):
    setup = pb.StreamSetup()
    setup.CopyFrom(SETUP)
    setup.MergeFrom(pb.StreamSetup(**said))
    return pb.DenoiseStreamRequest(setup=setup)


A_FRAME = pb.DenoiseStreamRequest(frame=bytes(WIDTH * HEIGHT * 3))


@pytest.mark.parametrize(
    ("messages", "code", "words"),
    [
        ([], "bad_input", "the first message must hold setup"),
        ([A_FRAME], "bad_input", "the first message must hold setup"),
        ([first(), A_FRAME, first()], "bad_input", "the first message alone"),
        ([first(), pb.DenoiseStreamRequest(frame=b"abc")], "bad_input", "frame 0 has 3 bytes; 24x16 pixels"),
        ([first(model="magic")], "unknown_model", "magic"),
        ([first(sigma=900)], "bad_input", "sigma is 900"),
        ([first(strength=1.5)], "bad_input", "strength is 1.5"),
        ([first(pixel_format=9)], "bad_input", "PIXEL_FORMAT_RGB8"),
        ([pb.DenoiseStreamRequest(setup=pb.StreamSetup(height=3))], "bad_input", "frames are 0x3"),
        ([first(width=-5)], "bad_input", "frames are -5x16"),
        ([first(width=1 << 20, height=1 << 20)], "too_large", "pixels are accepted"),
        ([first(width=1000, height=1000)], "too_large", "at most 1048576 are accepted"),
    ],
)
def test_what_will_never_do_is_refused_with_the_code_that_rest_has(host, client, messages, code, words):
    with stub_of(client) as stub, pytest.raises(grpc.RpcError) as refused:
        list(stub.DenoiseStream(iter(messages), timeout=PATIENCE_S))
    assert dict(refused.value.trailing_metadata())["quietframe-code"] == code
    assert words in refused.value.details()
    assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    until(lambda: host.host.place.taken == 0)


def test_a_caller_who_falls_silent_loses_the_place(settings, host, tmp_path):
    hasty = settings.model_copy(update={"live_idle_s": 0.5, "data_dir": tmp_path})
    source = Source()
    with (
        served(hasty) as (http, _),
        Client(str(http.base_url)) as client,
        pytest.raises(ServerProblem) as silent,
        stream(client, source) as live,
    ):
        list(live)
    assert (silent.value.code, silent.value.status) == ("stream_idle", 408)
    until(lambda: host.host.place.taken == 0)
    source.put(None)


def test_without_a_worker_for_it_a_stream_is_refused_at_once(settings, client, fresh_redis_url):
    with pytest.raises(ServerProblem, match="no worker takes live streams") as alone:
        stream(client, [])
    assert (alone.value.code, alone.value.retryable) == ("not_ready", True)
    with hosting(settings) as played:
        played.announce()  # of another machine, by an address that means this one
        with pytest.raises(ServerProblem, match="QUIETFRAME_LIVE_HOST"):
            stream(client, [])
        played.announce(address=f"127.0.0.2:{free_port()}")
        with pytest.raises(ServerProblem, match="QUIETFRAME_LIVE_HOST"):
            stream(client, [])


def test_a_worker_that_has_died_since_it_told_of_itself_is_passed_over(settings, host, client):
    dead = host.host.place.model_copy(update={"address": f"127.0.0.1:{free_port()}", "streams": 9})
    card = WorkerCard(id="dead", pid=1, host="elsewhere", started_at=0, ready=True, live=dead)
    with LeaseClient(settings.redis_url, settings, "dead") as other:
        other.announce(card)
        with stream(client, [frame(0)]) as live:
            assert len(list(live)) == 1


def test_only_who_read_the_broker_gets_in_and_nobody_else_is_told_how(host, client):
    place = host.host.place
    with grpc.insecure_channel(place.address) as channel:
        restore = channel.stream_stream(RESTORE)
        for metadata in ((), ((TOKEN_KEY, "guessed"),)):
            with pytest.raises(grpc.RpcError) as refused:
                list(restore(iter([b""]), metadata=metadata, timeout=PATIENCE_S))
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert len(place.token) > 40
    shown = client._http.get("/readyz")
    assert place.address in shown.text
    assert place.token not in shown.text
    assert place.token not in repr(place)


def test_a_worker_that_stops_answers_what_it_took_and_says_so(host, client):
    host.shelf.go.clear()
    source = Source()
    source.put(*(frame(index) for index in range(3)))
    with stream(client, source) as live:
        assert host.shelf.stages[0].entered.wait(PATIENCE_S)
        until(lambda: source.taken == 3)
        stopping = threading.Thread(target=host.host.stop, args=(PATIENCE_S,))
        stopping.start()
        until(host.host._stopping.is_set)
        source.put(frame(3))
        host.shelf.go.set()
        made = []
        with pytest.raises(ServerProblem, match="is stopping") as ended:
            made.extend(live)
        assert ended.value.code == "not_ready"
        stopping.join(PATIENCE_S)
    source.put(None)


def test_an_api_that_stops_answers_what_it_took_and_says_so(settings, host, tmp_path):
    own = settings.model_copy(update={"data_dir": tmp_path, "drain_s": PATIENCE_S})
    source = Source()
    source.put(*(frame(index) for index in range(REACH + 1)))
    with served(own) as (http, serving), Client(str(http.base_url)) as client, stream(client, source) as live:
        answers = iter(live)
        made = [next(answers)]
        serving.should_exit = True
        with pytest.raises(ServerProblem, match="every frame that it took was answered") as ended:
            made.extend(answers)
        source.put(None)
    assert ended.value.code == "not_ready"
    assert len(made) <= REACH + 1


def test_an_engine_that_fails_ends_the_stream_and_has_the_worker_started_anew(host, client):
    host.shelf.stages[0].fails = True
    with pytest.raises(ServerProblem) as failed, stream(client, [frame(0)]) as live:
        list(live)
    assert failed.value.code == "failed"
    assert host.gave_up.wait(PATIENCE_S)


def test_a_service_that_is_not_there_is_said_so(client):
    with pytest.raises(ServerAway, match="gRPC"):
        stream(client, [], address=f"127.0.0.1:{free_port()}")


def test_an_address_that_is_not_ours_is_one_clear_message(settings):
    with pytest.raises(CannotHost, match=r"cannot listen on 192\.0\.2\.1:0 for live streams"):
        LiveHost(settings.model_copy(update={"live_host": "192.0.2.1"}), PlayedShelf(), print)


class Watched:
    """A bar that counts."""

    def __init__(self):
        self.done = 0

    def start(self, name): ...
    def finish(self): ...
    def move(self, done, total):
        self.done = done


class Piped:
    """Standard input or output of a process, from memory."""

    def __init__(self, content=b""):
        self.buffer = io.BytesIO(content)


def test_raw_frames_go_through_pipes(host, url, monkeypatch):
    noisy = [frame(index, np.uint16) for index in range(4)]
    output = Piped()
    monkeypatch.setattr("sys.stdin", Piped(b"".join(one.tobytes() for one in noisy)))
    monkeypatch.setattr("sys.stdout", output)
    bar = Watched()
    fed = feed_live(url, "-", "-", settings=Settings(), bar=bar, size=(WIDTH, HEIGHT), pixel_format="rgb16")
    monkeypatch.undo()
    assert output.buffer.getvalue() == b"".join(halved(one).tobytes() for one in noisy)
    assert (fed.frames, fed.dropped, fed.latency_frames, bar.done) == (4, 0, REACH, 4)
    assert 0 < fed.latency_p50_ms <= fed.latency_p95_ms
    assert "- -> -: fitvnet.camera on played fp32, 4 frames" in fed.line()


def test_a_pipe_that_ends_within_a_frame_or_tells_no_size_is_refused(host, url, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", Piped(frame(0).tobytes() + b"abc"))
    feed = functools.partial(feed_live, url, "-", str(tmp_path / "made.mkv"), settings=Settings(), bar=Watched())
    with pytest.raises(BadInput, match="frame 1 on standard input has 3 bytes"):
        feed(size=(WIDTH, HEIGHT))
    with pytest.raises(BadInput, match="--size"):
        feed()
    with pytest.raises(BadInput, match="codec"):
        feed(size=(WIDTH, HEIGHT), codec="h264")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("suffix", "pixel_format"), [("mkv", "rgb8"), ("mp4", "rgb16"), ("webm", "rgb8")])
def test_raw_frames_become_a_video_at_the_rate_that_was_said(host, url, monkeypatch, tmp_path, suffix, pixel_format):
    dtype = np.uint8 if pixel_format == "rgb8" else np.uint16
    flat = [np.full((HEIGHT, WIDTH, 3), shade * (np.iinfo(dtype).max // 10), dtype) for shade in range(1, 8)]
    monkeypatch.setattr("sys.stdin", Piped(b"".join(one.tobytes() for one in flat)))
    target = tmp_path / f"made.{suffix}"
    size = (WIDTH, HEIGHT)
    feed_live(
        url,
        "-",
        str(target),
        settings=Settings(),
        bar=Watched(),
        size=size,
        pixel_format=pixel_format,
        rate=Fraction(10),
    )
    made = list(VideoReader(target, Settings()))
    assert [round(10 * one.pts * one.time_base) for one in made] == list(range(7))
    for one, noisy in zip(made, flat, strict=True):
        off = one.pixels / np.iinfo(one.pixels.dtype).max - noisy / np.iinfo(dtype).max / 2
        assert np.abs(off).max() < 0.02  # the codec's own loss, on flat frames


def test_a_camera_gives_what_it_sees_now_and_drops_what_nobody_took(host, url, tmp_path):
    """A file stands in for the camera: it is read by the same library, as fast as that goes."""
    (tmp_path / "seen.mp4").write_bytes(short_video(WIDTH, HEIGHT, frames=7))
    source = f"camera:{tmp_path / 'seen.mp4'}"
    fed = feed_live(url, source, str(tmp_path / "made.mkv"), settings=Settings(), bar=Watched())
    assert 1 <= fed.frames == len(list(VideoReader(tmp_path / "made.mkv", Settings())))
    assert fed.frames + fed.dropped == 7
    with pytest.raises(BadInput, match="camera 99 gives no picture"):
        feed_live(url, "camera:99", "-", settings=Settings(), bar=Watched())


@pytest.fixture(scope="module")
def service():
    with running_service(live_streams=1, threads=1, warm="fitvnet.camera") as url:
        yield url


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A few noisy frames without any loss, and themselves."""
    path = tmp_path_factory.mktemp("clip") / "noisy.mkv"
    frames = [with_noise(one[:48, :64], seed) for seed, one in enumerate(moving_clip(read_photo())[:7])]
    with av.open(str(path), "w") as out:
        track = out.add_stream("ffv1", rate=25)
        track.width, track.height, track.pix_fmt = 64, 48, "bgr0"
        for one in frames:
            out.mux(track.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(one), format="rgb24")))
        out.mux(track.encode(None))
    return path, frames


def test_live_frames_are_restored_as_those_of_a_video_job_are_to_the_last_bit(service, clip, tmp_path):
    path, frames = clip
    with Client(service) as client:
        job = client.wait(client.submit_video(path, codec="ffv1", format="mkv", strength=0.75).id)
        client.download(job, tmp_path / "job.mkv")
        with client.stream(frames, width=64, height=48, strength=0.75) as live:
            streamed = [np.frombuffer(one.pixels, np.uint8).reshape(48, 64, 3) for one in live]
        assert live.start.model == job.model
    for ours, theirs in zip(streamed, VideoReader(tmp_path / "job.mkv", Settings()), strict=True):
        np.testing.assert_array_equal(ours, theirs.pixels)

    command = [sys.executable, "-m", "service", "denoise", "--live", "--server", service, "--strength", "0.75"]
    target = tmp_path / "live.mkv"
    told = subprocess.run(
        [*command, str(path), str(target), "--codec", "ffv1", "--real-time", "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    figures = json.loads(told.stdout)
    assert (figures["frames"], figures["model"]) == (7, job.model)
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p95_ms"]
    for ours, theirs in zip(streamed, VideoReader(target, Settings()), strict=True):
        np.testing.assert_array_equal(ours, theirs.pixels)


def test_the_command_needs_a_server_for_live_frames(clip, tmp_path):
    ran = CliRunner().invoke(app, ["denoise", "--live", str(clip[0]), str(tmp_path / "made.mkv")])
    assert ran.exit_code == 2
    assert "--server" in ran.output


def test_a_worker_that_is_killed_ends_its_streams_at_once_and_says_so(service, clip):
    source = Source()
    source.put(*clip[1])
    with Client(service) as client, client.stream(source, width=64, height=48) as live:
        answers = iter(live)
        next(answers)
        (card,) = client._http.get("/readyz").json()["workers"]
        os.kill(card["pid"], signal.SIGKILL)
        with pytest.raises(ServerProblem, match="the worker of this stream is gone") as broken:
            list(answers)
    source.put(None)
    assert (broken.value.code, broken.value.retryable) == ("stream_broken", True)


def test_live_frames_without_end_do_not_keep_a_video_from_its_turn():
    turns, order = Turns(), []

    def want(urgency, count):
        for _ in range(count):
            with turns.turn(urgency):
                order.append(urgency)

    with turns.turn(Urgency.BATCH):
        video = threading.Thread(target=want, args=(Urgency.VIDEO, 1))
        video.start()
        until(lambda: turns.waiting == 1)
        # Two streams: whenever one has its turn, the other waits already.
        live = [threading.Thread(target=want, args=(Urgency.INTERACTIVE, 50)) for _ in range(2)]
        for one in live:
            one.start()
        until(lambda: turns.waiting == 3)
    for one in (video, *live):
        one.join(PATIENCE_S)
    assert 0 < order.index(Urgency.VIDEO) <= 10

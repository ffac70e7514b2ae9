"""A decoder can do nothing but decode, and its death is its file's fault, unless somebody else killed it."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hostile.corpus import photo, png, zeros
from media_samples import make_video, moments

from service import confinement
from service.errors import BadInput, FrameTooLarge, UnknownFormat
from service.media import image as here
from service.media import video as in_this_process
from service.media.held import HeldFile
from service.media.segments import SegmentWriter, join
from service.media.video import VideoWriter
from service.sandbox import decoder, videos, wire
from service.sandbox.decoder import Decoder, DecoderLost
from service.sandbox.images import read_image
from service.sandbox.videos import VideoReader, read_timeline
from service.settings import Settings

ROOT = Path(__file__).parent.parent
LIMITS = Settings()
SOON = Settings(decode_timeout_s=0.5)
PATIENCE_S = 20.0
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="these layers are Linux's")


@pytest.fixture
def source(tmp_path):
    return make_video(tmp_path / "source.mp4", pts=moments(12))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(photo("PNG"))
    return path


def children_of(pid):
    folder = Path(f"/proc/{pid}/task")
    return [int(child) for task in folder.iterdir() for child in (task / "children").read_text().split()]


def decoders():
    """Processes of the nursery's children, the spare one included."""
    return set(children_of(decoder._nursery._process.pid))


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


TRIALS = """
import ctypes, json, mmap, os, resource, socket, subprocess, sys, threading
from service import confinement

libc = ctypes.CDLL(None, use_errno=True)
parent = os.getppid()
confinement.limit(data_bytes=1 << 30)
layers = confinement.confine()

def refused(act):
    try:
        return act() == -1
    except (OSError, ValueError):
        return True

trials = {
    "open a file": lambda: open("/etc/passwd"),
    "look at a file": lambda: os.stat("/etc/passwd"),
    "write a file": lambda: open("/tmp/written", "w"),
    "list a folder": lambda: os.listdir("/"),
    "make a socket": lambda: socket.socket(),
    "make a pair of sockets": lambda: socket.socketpair(),
    "start a program": lambda: subprocess.run(["true"]),
    "become a program": lambda: os.execv("/bin/true", ["true"]),
    "fork": os.fork,
    "signal another process": lambda: os.kill(parent, 0),
    "signal another process's thread": lambda: libc.syscall({"x86_64": 234, "aarch64": 131}[os.uname().machine], parent, parent, 0),
    "look into another process": lambda: libc.ptrace(16, parent, 0, 0),
    "make a limit wider": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9)),
    "map code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
}
allowed = [name for name, act in trials.items() if not refused(act)]
done = []
threads = [threading.Thread(target=done.append, args=(1,)) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
try:
    bytearray(2 << 30)
    allowed.append("take two gigabytes")
except MemoryError:
    pass
print(json.dumps({"layers": layers, "allowed": allowed, "threads": len(done)}))
"""  # noqa: E501


@ON_LINUX
def test_what_is_confined_can_reach_nothing_and_still_works():
    ran = subprocess.run([sys.executable, "-c", TRIALS], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    if confinement.SECCOMP not in told["layers"]:
        pytest.skip(f"this system forbids filters; it has {told['layers']}")
    assert told["allowed"] == []
    assert told["threads"] == 3


def test_a_picture_decoded_there_is_the_one_decoded_here(tmp_path):
    for form in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "HEIF"):
        path = tmp_path / form
        path.write_bytes(photo(form))
        ours, theirs = here.read_image(path, LIMITS), read_image(path, LIMITS)
        np.testing.assert_array_equal(theirs.pixels, ours.pixels)
        assert theirs.pixels.dtype == ours.pixels.dtype
        assert (theirs.metadata, theirs.is_grey, theirs.lost) == (ours.metadata, ours.is_grey, ours.lost)


def test_depth_alpha_and_metadata_cross_over(tmp_path):
    path = tmp_path / "deep.png"
    rows = np.random.default_rng(1).integers(0, 65536, (9, 7, 4), np.uint16)
    like = here.Picture(
        pixels=np.ascontiguousarray(rows[..., :3]),
        alpha=np.ascontiguousarray(rows[..., 3]),
        is_grey=False,
        content_type="image/png",
        metadata=here.Metadata(
            exif=b"MM\0*\0\0\0\x08\0\0\0\0\0\0", png_chunks=((b"pHYs", b"\0\0\0\x09pHYs" + bytes(13)),)
        ),
    )
    path.write_bytes(here.write_image(like.pixels, like, format="png").data)
    ours, theirs = here.read_image(path, LIMITS), read_image(path, LIMITS)
    np.testing.assert_array_equal(theirs.pixels, like.pixels)
    np.testing.assert_array_equal(theirs.alpha, like.alpha)
    assert theirs.metadata == ours.metadata
    assert theirs.metadata.exif


def test_refusals_keep_their_kind(tmp_path):
    for content, kind in ((b"", BadInput), (b"text", UnknownFormat), (png(10**6, 10**6, b""), FrameTooLarge)):
        (tmp_path / "refused").write_bytes(content)
        with pytest.raises(BadInput) as told:
            read_image(tmp_path / "refused", LIMITS)
        assert type(told.value) is kind


def test_frames_and_times_decoded_there_are_those_decoded_here(source):
    with in_this_process.VideoReader(source, LIMITS) as ours, VideoReader(source, LIMITS) as theirs:
        assert theirs.head == ours.head
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(other.pixels, mine.pixels)
            assert (other.pts, other.time_base, other.duration) == (mine.pts, mine.time_base, mine.duration)


def test_a_file_written_there_is_the_one_written_here(source, tmp_path):
    """But for the random numbers that name a Matroska file."""
    lost = []
    for reader, name in ((in_this_process.VideoReader, "ours"), (VideoReader, "theirs")):
        with (
            reader(source, LIMITS) as like,
            VideoWriter(tmp_path / name, like, format="mkv", codec="ffv1") as writer,
        ):
            for frame in like:
                writer.write(frame)
        lost.append(writer.lost)
    assert lost[0] == lost[1]
    assert {path.name for path in tmp_path.iterdir()} == {"source.mp4", "ours", "theirs"}
    assert packets_in(tmp_path / "ours") == packets_in(tmp_path / "theirs")


def packets_in(path):
    with av.open(str(path)) as container:
        return [
            (packet.stream_index, packet.pts, packet.dts, packet.duration, packet.is_keyframe, bytes(packet))
            for packet in container.demux()
        ]


@ON_LINUX
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGXCPU])
def test_a_decoder_that_dies_of_its_file_is_the_files_fault(source, number):
    with VideoReader(source, LIMITS) as reader:
        frames = iter(reader)
        next(frames)
        _kill_the_busy_one(reader, number)
        with pytest.raises(BadInput, match=number.name):
            list(frames)


@ON_LINUX
@pytest.mark.parametrize("number", [signal.SIGKILL])
def test_a_decoder_that_is_killed_from_outside_is_not(source, number):
    with VideoReader(source, LIMITS) as reader:
        frames = iter(reader)
        next(frames)
        _kill_the_busy_one(reader, number)
        with pytest.raises(DecoderLost, match="from outside"):
            list(frames)


def _kill_the_busy_one(reader, number):
    """The decoder of a reader, which may have said more than was heard yet."""
    until(lambda: len(decoders()) == 2)
    busy = decoders() - {max(decoders())}  # the spare one is the younger
    for pid in busy:
        os.kill(pid, number)
    until(lambda: all(is_gone(pid) for pid in busy))


@ON_LINUX
def test_a_decoder_that_hangs_is_given_up(tmp_path):
    # More frames than wait ready: the rest must be waited for.
    source = make_video(tmp_path / "long.mp4", pts=moments(12))
    with VideoReader(source, SOON) as reader:
        frames = iter(reader)
        next(frames)
        until(lambda: len(decoders()) == 2)
        for pid in decoders() - {max(decoders())}:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(BadInput, match=r"more than the allowed 0\.5 s"):
            list(frames)
    until(lambda: len(decoders()) == 1)


def test_a_picture_that_takes_too_much_memory_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(8000, 8000, zeros(8000 * 64001), 16, 6))
    with pytest.raises(BadInput, match=r"memory|cannot be decoded"):
        read_image(path, Settings(decode_memory_bytes=300 * 1024**2))


@ON_LINUX
def test_who_leaves_early_leaves_no_decoder_behind(source):
    with VideoReader(source, LIMITS) as reader:
        next(iter(reader))
    until(lambda: len(decoders()) == 1)


def test_the_nursery_is_started_again_when_it_is_gone(picture):
    read_image(picture, LIMITS)
    decoder._nursery._process.kill()
    decoder._nursery._process.wait()
    assert read_image(picture, LIMITS).pixels.shape == (72, 72, 3)


WORKER = """
import sys, time
from pathlib import Path
from service.sandbox import decoder
from service.sandbox.videos import VideoReader
from service.settings import Settings
reader = VideoReader(Path(sys.argv[1]), Settings())
next(iter(reader))
print(decoder._nursery._process.pid, flush=True)
time.sleep(60)
"""


@ON_LINUX
def test_a_worker_that_is_killed_leaves_nothing_behind(source):
    command = [sys.executable, "-c", WORKER, str(source)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as worker:
        nursery = int(worker.stdout.readline())
        family = [nursery, *children_of(nursery)]
        assert len(family) == 3  # the one at work, and the spare one
        worker.kill()
        until(lambda: all(is_gone(pid) for pid in family))


@ON_LINUX
def test_a_disk_that_fills_up_there_is_not_the_inputs_fault(tmp_path):
    source = make_video(tmp_path / "long.mp4", pts=moments(42))
    with VideoReader(source, LIMITS) as reader, SegmentWriter(tmp_path / "segment", reader, format="mp4") as writer:
        for frame in reader:
            writer.write(frame)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    with VideoReader(source, LIMITS) as reader:
        decoder._nursery.forget()
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, usual[1]))  # for the processes made from here on
        try:
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                join([tmp_path / "segment"], tmp_path / "joined", reader, format="mp4")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
            decoder._nursery.forget()
    assert not (tmp_path / "joined").exists()
    assert not (tmp_path / "joined.part").exists()


class Liar:
    """A decoder that its input took over."""

    def __init__(self, *messages):
        self.messages = list(messages)

    def receive(self):
        return wire.Message(self.messages.pop(0), [])

    def close(self):
        pass


def head_with(source, **lies):
    with VideoReader(source, LIMITS) as reader:
        return {**videos.heads.as_said(reader.head), **lies}


@pytest.mark.parametrize(
    "lie",
    [
        {"time_base": "0/1"},
        {"time_base": "1/0"},
        {"pixel_format": "no such"},
        {"width": "wide"},
        {"tags": 5},
        {"display_matrix": [1]},
        {"facts": None},
    ],
)
def test_a_decoder_that_lies_about_its_video_is_not_believed(source, lie):
    with pytest.raises(BadInput, match="gave no video"):
        videos.heads.as_heard(head_with(source, **lie))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0",
        b"\xff" * 12,
        b"\0\0\0\2" + bytes(8) + b"[]",
        b"\0\0\0\3" + bytes(8) + b"{}x",
        b"\0\1\0\0" + bytes(8) + b"[" * 65536,
        b'\0\0\0\x0d\0\0\0\0\0\0\0\1{"blocks":[9]}'[:25],
    ],
)
def test_what_is_no_message_is_not_taken_for_one(text):
    ours, theirs = wire.socket.socketpair()
    with ours, theirs:
        theirs.sendall(text)
        theirs.close()
        if text:
            with pytest.raises(wire.Garbled):
                wire.receive(ours, 5)
        else:
            assert wire.receive(ours, 5) is None


def test_messages_cross_with_their_blocks():
    ours, theirs = wire.socket.socketpair()
    with ours, theirs:
        wire.send(ours, {"word": "ü"}, b"", b"abc")
        message = wire.receive(theirs)
    assert message.said == {"word": "ü"}
    assert [bytes(block) for block in message.blocks] == [b"", b"abc"]


def test_an_unexpected_error_there_is_not_the_inputs_fault():
    with Decoder("no such task", [], {}, LIMITS) as lost, pytest.raises(DecoderLost, match="no such task"):
        lost.receive()


def test_a_held_file_is_read_from_several_places(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 300)
    with path.open("rb+") as file:
        held = HeldFile(file.fileno())
        with held.open() as first, held.open() as second:
            first.seek(256)
            assert second.read(3) == b"\0\1\2"
            assert first.read(3) == b"\0\1\2"
            assert second.seek(-1, 2) == 256 * 300 - 1
            assert second.read() == b"\xff"
            assert len(first.read()) == 256 * 299 - 3
        writer = held.open("r+b")
        writer.seek(10)
        assert writer.write(b"ab") == 2
        assert writer.tell() == 12
    assert path.read_bytes()[9:13] == b"\x09ab\x0c"


def test_time_is_earned_by_frames(source):
    with VideoReader(source, LIMITS) as reader:
        patience = reader._decoder
        patience._left_s = 1.0
        patience.made_progress(5.0)
        assert patience._left_s == 6.0
        patience.made_progress(10**6)
        assert patience._left_s == LIMITS.decode_timeout_s


def test_a_video_may_not_last_or_race(tmp_path):
    even = make_video(tmp_path / "even.mp4", pts=range(30), time_base=Fraction(1, 30))
    with pytest.raises(FrameTooLarge, match="lasts"), VideoReader(even, Settings(max_video_seconds=0.5)) as reader:
        list(reader)
    with pytest.raises(FrameTooLarge, match="a second"), VideoReader(even, Settings(max_frame_rate=20)) as reader:
        list(reader)
    for settings in (Settings(max_video_seconds=0.5), Settings(max_frame_rate=20)):
        with pytest.raises(FrameTooLarge):
            read_timeline(even, settings)

"""What does a video's header say, asked so that the asker never loads a decoder?

The API process calls `probe_video`, which starts a child with little memory, little time and no names of files: it is
handed the open file as its standard input, and gives up all that decoding does not take. Whatever the child dies of,
the caller gets one `BadInput`, unless somebody else ended it.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import BinaryIO

from service import confinement
from service.errors import BadInput, FrameTooLarge, NotReady, UnknownFormat
from service.job import InputFacts
from service.settings import Settings

# The settings that opening and decoding a video heed.
HEEDED = ("max_frame_pixels", "max_video_frames", "max_video_seconds", "max_frame_rate", "max_streams")
_MEMORY_BYTES = 3 * 1024**3  # the largest accepted frame takes 0.1 GiB, a decoder keeps up to 17
_CPU_S = 20
_WALL_S = 30.0
_MAX_ANSWER_BYTES = 64 * 1024
_ERRORS: dict[str, type[BadInput]] = {cls.__name__: cls for cls in (BadInput, FrameTooLarge, UnknownFormat)}
# Isolated mode (-I) keeps the current directory and PYTHON* variables from choosing what runs, so the one folder that
# these packages live in is named: the repository, or site-packages.
_CHILD = "import sys; sys.path.insert(0, sys.argv[1]); from service.media.probe import _child; _child()"
_ROOT = str(Path(__file__).resolve().parents[2])


async def probe_video(video: Path | BinaryIO, settings: Settings) -> InputFacts:
    """Ask a child process for a video's facts; it decodes the first frame to be sure there is one.

    Args:
        video: its path, or the file itself, open and with a descriptor; its position is kept.

    Raises:
        UnknownFormat: The bytes are in no video format that is read here.
        FrameTooLarge: More pixels a frame, or frames, than the settings allow.
        BadInput: No frame can be decoded, or the probe died or ran out of time or memory over it.
        NotReady: The probe was ended from outside.
    """
    if isinstance(video, Path):
        with video.open("rb") as file:
            return await probe_video(file, settings)
    video.flush()
    # The child moves the position that both share, and a file object trusts that nobody does.
    position = os.lseek(video.fileno(), 0, os.SEEK_CUR)
    try:
        return await _ask_child(video, settings)
    finally:
        os.lseek(video.fileno(), position, os.SEEK_SET)


def probe_video_here(path: Path, settings: Settings) -> InputFacts:
    """The same facts, found in this process: for the command line, which reads only what its user names."""
    with path.open("rb") as file:
        return _probe(file, settings)


async def _ask_child(video: BinaryIO, settings: Settings) -> InputFacts:
    bounds = {name: getattr(settings, name) for name in HEEDED}
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-c",
        _CHILD,
        _ROOT,
        json.dumps(bounds),
        stdin=video,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert child.stdout is not None
        async with asyncio.timeout(_WALL_S):
            answer = await child.stdout.read(_MAX_ANSWER_BYTES)
            while more := await child.stdout.read(_MAX_ANSWER_BYTES - len(answer)):
                answer += more
            await child.wait()
    except TimeoutError:
        raise BadInput(f"the first frame took more than {_WALL_S:g} s to decode") from None
    finally:
        # A caller that went away must leave no child behind.
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    return _read_answer(answer, child.returncode or 0)


def _probe(file: BinaryIO, settings: Settings) -> InputFacts:
    # The decoder is loaded only where it is wanted: the API process imports this file too.
    from service.media.opening import OpenVideo

    with OpenVideo(file, settings, threads=1) as video:
        return video.facts


def _read_answer(answer: bytes, status: int) -> InputFacts:
    try:
        told = json.loads(answer)
        if "error" in told:
            raise _ERRORS[told["error"]](told["message"])
        return InputFacts.model_validate(told["facts"])
    except (ValueError, KeyError, TypeError):
        if -status in (signal.SIGKILL, signal.SIGTERM):
            raise NotReady("a video's probe was ended from outside") from None  # memory ran out, or an operator
        raise BadInput(f"the video made its probe fail (status {status})") from None


def _child() -> None:
    """Answer on standard output, one JSON document, about the video on standard input."""
    from service.media.opening import load_all

    load_all()
    bounds = json.loads(sys.argv[2])
    settings = Settings().model_copy(update=bounds)
    confinement.limit(data_bytes=_MEMORY_BYTES, cpu_s=_CPU_S)
    confinement.confine()
    try:
        with os.fdopen(0, "rb") as file:
            facts = _probe(file, settings)
        answer: dict[str, object] = {"facts": facts.model_dump()}
    except BadInput as err:
        answer = {"error": type(err).__name__, "message": str(err)}
    except MemoryError:
        answer = {"error": "BadInput", "message": "the first frame takes more memory to decode than is allowed"}
    sys.stdout.write(json.dumps(answer))

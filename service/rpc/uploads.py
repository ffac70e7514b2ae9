"""Takes a video in, piece by piece, into the spool on the data disk: memory does not grow with it."""

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from service.errors import BadInput, FrameTooLarge, NotReady
from service.rpc.generated.quietframe.v1 import denoiser_pb2 as pb

log = logging.getLogger(__name__)

_WRITE_BYTES = 1 << 20  # how much is gathered before a thread writes it: a hop costs tens of microseconds


class VideoUpload:
    """The parts of one `SubmitVideo` call. Its files are open from `read` on, and are closed unless handed on."""

    def __init__(self, spool: Path, *, max_bytes: int) -> None:
        self.video = pb.VideoJob()
        self.content: BinaryIO | None = None
        self.reference: BinaryIO | None = None
        self._spool = spool
        self._max_bytes = max_bytes
        self._arrived = 0

    async def read(self, parts: AsyncIterator[pb.SubmitVideoRequest]) -> None:
        """Read to the end. While a piece is written no further one is asked for: the sender waits.

        Raises:
            BadInput: the parts come in another order than the proto has it, or one is missing.
            FrameTooLarge: more bytes than are accepted.
            NotReady: there is no room for them.
        """
        try:
            await self._read(parts)
        except OSError as err:
            self.close()
            log.exception("an upload could not be spooled")
            raise NotReady("the upload could not be kept; the service's log has the reason") from err
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for file in (self.content, self.reference):
            with suppress(OSError):  # what a full disk did not take is written once more, and the caller has been told
                if file is not None:
                    file.close()

    async def _read(self, parts: AsyncIterator[pb.SubmitVideoRequest]) -> None:
        first = await anext(aiter(parts), None)
        if first is None or first.WhichOneof("part") != "video":
            raise BadInput("the first message must hold video, and those behind it chunks")
        self.video = first.video
        self.content = file = self._open()
        gathered = bytearray()
        async for part in parts:
            kind = part.WhichOneof("part")
            if kind not in ("chunk", "reference_chunk"):
                raise BadInput("video goes into the first message alone; those behind it hold chunks")
            if (kind == "reference_chunk") != (self.reference is not None):
                if self.reference is not None:
                    raise BadInput("a chunk comes behind a reference_chunk; the video goes first")
                await asyncio.to_thread(file.write, gathered)
                gathered.clear()
                self.reference = file = self._open()
            piece = part.chunk if kind == "chunk" else part.reference_chunk
            self._arrived += len(piece)
            if self._arrived > self._max_bytes:
                raise FrameTooLarge(f"the upload has {self._arrived} bytes or more; at most {self._max_bytes} may be")
            gathered += piece
            if len(gathered) >= _WRITE_BYTES:
                await asyncio.to_thread(file.write, bytes(gathered))
                gathered.clear()
        await asyncio.to_thread(file.write, gathered)
        for one in (self.content, self.reference):
            if one is not None:
                await asyncio.to_thread(one.flush)  # here, where it is known what to make of a full disk
                one.seek(0)

    def _open(self) -> BinaryIO:
        # Unlinked from the start: whatever happens to this process, nothing stays behind.
        return tempfile.TemporaryFile(dir=self._spool)

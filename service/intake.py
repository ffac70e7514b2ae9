"""Is this input one we can denoise, and which job comes of it? The gate that every door (REST, gRPC) leads through."""

import asyncio
import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import BinaryIO

from models.catalogue import DenoiserSpec, Kind
from models.own import Library
from service.access.callers import current_caller
from service.access.quotas import Quotas
from service.blobs import Blob, BlobStore
from service.broker.queue import QueueClient
from service.errors import BadInput, NotReady, UnknownFormat
from service.job import ENSEMBLES, SCANS, InputFacts, Job, Lane, Options, new_job_id, pixels_of
from service.media import formats, probe, sniff
from service.settings import Settings
from service.webhooks.target import target_of

log = logging.getLogger(__name__)

_PROBES_AT_ONCE = 4  # each a process with a decoder in it
_SIGMA_SLACK = 1e-6  # 55/255*255 need not be 55 to the last bit
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_DOOR = {
    "image": ("images", "Send images to POST /denoise/image or POST /jobs/image"),
    "video": ("videos", "Send videos to POST /jobs/video"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a caller sent. The files are on disk, read from where they stand, and stay the caller's to close."""

    kind: Kind
    content: BinaryIO
    name: str  # the caller's file name: for display only, never a path
    options: Options
    model: str = "auto"
    reference: BinaryIO | None = None
    webhook_url: str | None = None  # who is told when it is over
    waited_for: bool = False  # somebody stays on the line, so it goes before what nobody waits for


@dataclass(slots=True)
class _Bill:
    is_due: bool = False  # a new job came of it


class Intake:
    """Checks what was asked, stores its files, and puts the job into its lane."""

    def __init__(self, settings: Settings, queue: QueueClient, store: BlobStore, quotas: Quotas | None = None) -> None:
        self._settings = settings
        self._queue = queue
        self._store = store
        self._quotas = quotas
        self.library = Library(settings.own_models_dir)
        self._probes = asyncio.Semaphore(_PROBES_AT_ONCE)

    async def accept(self, asked: Asked, *, idempotency_key: str | None = None) -> tuple[str, bool]:
        """Make a job of it.

        A blob whose job does not come about is left to the janitor, which deletes what no job names.

        Returns:
            The job's id, and whether it is new: with a key seen before it is the job made then.

        Raises:
            BadInput, UnknownFormat, FrameTooLarge, UnknownDenoiser: it will never do.
            IdempotencyConflict: the key belongs to another request.
            RateExceeded: the caller has handed in too many pixels.
            QueueFull, NotReady: not now.
        """
        if idempotency_key is not None and not _KEY.fullmatch(idempotency_key):
            raise BadInput("the idempotency key must be 1 to 255 visible ASCII characters; a UUID is a good one")
        self._check_webhook(asked.webhook_url)
        spec = await asyncio.to_thread(self.library.find, asked.model, asked.kind)
        check_options(asked.kind, spec, asked.options)

        facts = await self._look_at(asked.kind, asked.content)
        _check_output(asked.kind, asked.options, facts.content_type, facts)  # again, now that `same` means something
        if asked.reference is not None:
            try:
                clean = await self._look_at(asked.kind, asked.reference)
            except BadInput as err:
                raise type(err)(f"the reference is refused: {err}") from err
            if (clean.width, clean.height) != (facts.width, facts.height):
                raise BadInput(
                    f"reference is {clean.width}x{clean.height} and file is {facts.width}x{facts.height}; "
                    "both must be of one size"
                )
        async with self._paid(pixels_of(asked.kind, facts) * asked.options.ensemble) as bill:
            job_id, is_new = await self._put(asked, spec, facts, idempotency_key)
            bill.is_due = is_new
        return job_id, is_new

    @asynccontextmanager
    async def _paid(self, pixels: int) -> AsyncIterator["_Bill"]:
        """Take them from the caller's quota, before a byte is stored; where no job comes of it they are given back."""
        bill = _Bill()
        if self._quotas is not None:
            await self._quotas.spend_pixels(pixels)
        try:
            yield bill
        finally:
            if self._quotas is not None and not bill.is_due:
                await self._quotas.give_back_pixels(pixels)

    async def _put(
        self, asked: Asked, spec: DenoiserSpec, facts: InputFacts, idempotency_key: str | None
    ) -> tuple[str, bool]:
        blob = await self._store_away(asked.content)
        reference = await self._store_away(asked.reference) if asked.reference is not None else None
        caller = current_caller()
        job = Job(
            id=new_job_id(),
            kind=asked.kind,
            lane=_lane_of(asked),
            model=spec.name,
            options=asked.options,
            input_blob=blob.name,
            reference_blob=reference.name if reference else None,
            input=facts,
            name=safe_stem(asked.name) or asked.kind,
            created_at=time.time(),
            owner=caller.owner if caller else None,
            webhook=asked.webhook_url,
        )
        idempotency = (idempotency_key, _fingerprint(asked, blob, reference)) if idempotency_key else None
        return await self._queue.put(job, idempotency=idempotency)

    def _check_webhook(self, url: str | None) -> None:
        """By how it is written; its addresses are judged when it is called, as they are then."""
        if url is None:
            return
        settings = self._settings
        if settings.webhook_secret is None:
            raise BadInput("webhook_url is set, and this service sends no webhooks; follow the job, or poll it")
        target_of(url, allow_http=settings.webhook_allow_http, allow_private=settings.webhook_allow_private)

    async def _look_at(self, kind: Kind, content: BinaryIO) -> InputFacts:
        """At the header, and at a video's first frame; what is refused here is never stored."""
        head = await asyncio.to_thread(_head_of, content)
        if not head:
            raise BadInput("file is empty: it has 0 bytes")
        content_type = sniff.content_type_of(head)
        if content_type is None:
            raise sniff.unknown_format(head, kind)
        found = content_type.partition("/")[0]
        if found != kind:
            raise UnknownFormat(f"file is {content_type}, and here {_DOOR[kind][0]} are taken. {_DOOR[found][1]}")
        if kind == "image":
            return await asyncio.to_thread(sniff.probe_image, content, self._settings)
        async with self._probes:
            return await probe.probe_video(content, self._settings)

    async def _store_away(self, content: BinaryIO) -> Blob:
        try:
            content.seek(0)
            return await asyncio.to_thread(self._store.put, content)
        except OSError as err:
            log.exception("an upload could not be stored")
            raise NotReady("the upload could not be kept; the service's log has the reason") from err


def check_options(kind: Kind, spec: DenoiserSpec, options: Options, content_type: str | None = None) -> None:
    """Refuse what no worker could do, before a byte is stored; with the input's type, also what `same` then means.

    Raises:
        BadInput: naming the value and its bound.
    """
    if options.sigma is not None:
        least, most = (level * 255 for level in spec.sigma or (0.0, spec.trained_sigma[1]))
        if not least - _SIGMA_SLACK <= options.sigma <= most + _SIGMA_SLACK:
            raise BadInput(
                f"sigma is {options.sigma:g}; model {spec.name} takes {least:g} to {most:g} "
                "(noise level on the 8-bit scale)"
            )
    if not 0 <= options.strength <= 1:
        raise BadInput(f"strength is {options.strength:g}; it is a share from 0 to 1")
    if options.ensemble not in ENSEMBLES:
        raise BadInput(f"ensemble is {options.ensemble}; allowed are {', '.join(map(str, ENSEMBLES))}")
    if options.scan not in SCANS:
        raise BadInput(f"scan is {options.scan!r}; allowed are {', '.join(SCANS)}")
    if kind == "image" and options.scan != "auto":
        raise BadInput(f"scan is {options.scan!r}; it is for videos, and this is an image")
    _check_output(kind, options, content_type)


def _check_output(
    kind: Kind, options: Options, content_type: str | None = None, source: InputFacts | None = None
) -> None:
    formats.validate_output(kind, options.format, options.codec, options.crf, options.quality, content_type, source)


def safe_stem(file_name: str) -> str:
    """The caller's file name without its ending and without what could mean anything to a shell, path or header."""
    stem = PurePath(file_name.replace("\\", "/")).stem
    return _UNSAFE.sub("-", stem).strip("-.")[:80]


def _lane_of(asked: Asked) -> Lane:
    if asked.kind == "video":
        return Lane.VIDEO
    return Lane.IMAGE_INTERACTIVE if asked.waited_for else Lane.IMAGE_BATCH


def _head_of(content: BinaryIO) -> bytes:
    content.seek(0)
    head = content.read(sniff.HEAD_BYTES)
    content.seek(0)
    return head


def _fingerprint(asked: Asked, blob: Blob, reference: Blob | None) -> str:
    """What makes two requests the same: all that shapes the result. The file's name does not."""
    # Without what is as usual: a later version, which has more options, must know the request again.
    options = asked.options.model_dump(exclude_defaults=True)
    parts = [asked.kind, asked.model, options, blob.sha256, reference.sha256 if reference else None]
    if asked.webhook_url is not None:  # it shapes no result, but who asks for another call has asked for another thing
        parts.append(asked.webhook_url)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

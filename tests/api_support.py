"""What the API's tests share: an app served for real, a worker played by a thread, and small inputs."""

import hashlib
import io
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import av
import httpx
import numpy as np
from PIL import Image

from service.api.server import Server, make_server
from service.blobs import open_store
from service.broker.card import ModelReady, WorkerCard
from service.broker.lease import Lease, LeaseClient
from service.errors import JobCancelled
from service.frames import FrameFigures, FrameTable
from service.job import FrameTableBlob, Lane, Metrics, NoiseEstimate, Outcome, Progress, Result, StageSeconds
from service.settings import Settings

PATIENCE_S = 20.0  # how long a test waits for what must happen; no test waits so long when all is well


def noisy_png(width: int = 32, height: int = 24, seed: int = 7) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def short_video(width: int = 32, height: int = 24, frames: int = 3) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for shade in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 40 * shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def inverted(content: bytes) -> bytes:
    """What the played worker makes of an input."""
    return bytes(byte ^ 0xFF for byte in content)


class PlayedWorker:
    """Takes jobs from the real queue and inverts their bytes.

    `took` is set when it has a job; while `go` is clear it holds that job.
    """

    def __init__(self, settings: Settings, *, problem: dict[str, Any] | None = None) -> None:
        assert settings.redis_url
        self.took = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self._problem = problem
        self._store = open_store(settings)
        self._leases = LeaseClient(settings.redis_url, settings, "played")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        ready = {"fitvnet-spatial.camera": ModelReady(backend="openvino", precision="fp32")}
        self._leases.announce(
            WorkerCard(id="played", pid=1, host="here", started_at=time.time(), models=ready, ready=True)
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self.go.set()
        self._thread.join()
        self._leases.close()

    def _work(self) -> None:
        while not self._stop.is_set():
            if lease := self._leases.lease(list(Lane), wait_s=0.2):
                self.took.set()
                assert self.go.wait(PATIENCE_S)
                self._settle(lease)

    def _settle(self, lease: Lease) -> None:
        try:
            self._leases.report(lease, Progress(done=1, total=1, unit="tiles"))
        except JobCancelled:
            self._leases.cancelled(lease)
            return
        if self._problem:
            self._leases.bury(lease, self._problem)
            return
        job = lease.job
        with self._store.open(job.input_blob) as file:
            made = inverted(file.read())
        blob = self._store.put(io.BytesIO(made))
        table = FrameTable()
        table.add(FrameFigures(0, 24.5, 25.0, 0.5, psnr_db=31.5, ssim=0.9, input_psnr_db=20.25))
        table.add(FrameFigures(1, 24.25))
        rows = self._store.put(io.BytesIO(table.as_csv()))
        kept = FrameTableBlob(blob=rows.name, bytes=rows.bytes, sha256=rows.sha256) if job.kind == "video" else None
        measured = {"psnr_db": 31.5, "ssim": 0.9, "input_psnr_db": 20.25} if job.reference_blob else {}
        self._leases.ack(
            lease,
            Outcome(
                result=Result(
                    blob=blob.name,
                    content_type=job.input.content_type,
                    bytes=blob.bytes,
                    sha256=hashlib.sha256(made).hexdigest(),
                    file_name=f"{job.name}-denoised.png",
                ),
                metrics=Metrics(
                    sigma_estimate=24.5,
                    input_noise_estimate=NoiseEstimate(sigma=[25.0, 25.0, 25.0], black=[0.0] * 3, white=[0.0] * 3),
                    psnr_estimate_db=31.2,
                    psnr_estimate_error_db=0.6,
                    seconds=StageSeconds(decode=0.001, queue=0.002, infer=0.25, encode=0.003),
                    **measured,
                ),
                backend="openvino",
                precision="fp32",
                per_frame=kept,
            ),
        )


@contextmanager
def served(settings: Settings) -> Iterator[tuple[httpx.Client, Server]]:
    """The app on a free port of this machine, under the server that `serve` uses."""
    urls: queue.Queue[str] = queue.Queue()
    server = make_server(settings, urls.put)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with httpx.Client(base_url=urls.get(timeout=PATIENCE_S), timeout=PATIENCE_S) as client:
            yield client, server
    finally:
        server.should_exit = True
        thread.join()

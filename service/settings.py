"""What an operator can set: environment variables `QUIETFRAME_*`, read once."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Frozen after reading. Each field's variable is its name in capitals behind `QUIETFRAME_`."""

    model_config = SettingsConfigDict(env_prefix="QUIETFRAME_", frozen=True)

    host: str = Field("127.0.0.1", description="Address the HTTP server listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the HTTP server; 0 takes a free one.")
    data_dir: Path = Field(Path("quietframe-data"), description="Where blobs and the embedded queue live.")
    workers: int = Field(1, ge=1, le=64, description="Worker processes that `serve` starts.")
    redis_url: str | None = Field(
        None, description="redis:// or unix:// URL; without it `serve` starts its own server."
    )

    backend: Literal["auto", "openvino", "torch"] = Field("auto", description="What runs the networks.")
    threads: int = Field(0, ge=0, description="CPU threads of a worker's engine; 0 takes all cores.")
    tile_px: int = Field(768, ge=256, le=4096, multiple_of=64, description="Side of a tile; larger frames are cut.")

    max_upload_bytes: int = Field(2 * 1024**3, ge=1024, description="Largest request body.")
    max_image_pixels: int = Field(120_000_000, ge=1, description="Largest image, width times height.")
    max_frame_pixels: int = Field(8192 * 4352, ge=1, description="Largest video frame, width times height.")
    max_video_frames: int = Field(1_000_000, ge=1, description="Longest video, in frames.")
    max_queued_jobs: int = Field(10_000, ge=1, description="Jobs that may wait in one lane; more are answered 503.")

    sync_timeout_s: float = Field(300.0, gt=0, description="How long POST /denoise/image waits for its result.")
    lease_ttl_s: float = Field(30.0, gt=0.1, description="How long a worker may be silent before its job is given on.")
    max_attempts: int = Field(3, ge=1, description="Times a job is tried before it is given up.")
    drain_s: float = Field(20.0, ge=0, description="How long a stopping worker may take to finish the work in hand.")
    result_ttl_s: float = Field(24 * 3600, gt=0, description="How long a result is kept.")
    record_ttl_s: float = Field(
        7 * 24 * 3600, gt=0, description="How long a job is remembered after its result is gone."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")

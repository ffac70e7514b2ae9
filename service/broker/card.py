"""What does a worker tell of itself?"""

from pydantic import BaseModel, ConfigDict, Field


class ModelReady(BaseModel):
    """How a worker would run a denoiser now."""

    model_config = ConfigDict(frozen=True)

    backend: str = Field(description="What runs it.")
    precision: str = Field(description="What its inner layers compute in.")


class WorkerCard(BaseModel):
    """A live worker, as it announced itself. The card is gone when the worker has been silent for a lease's length."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(description="Name of the worker, unique among those alive.")
    pid: int = Field(description="Its process.")
    host: str = Field(description="Its machine.")
    started_at: float = Field(description="Seconds since 1970.")
    models: dict[str, ModelReady] = Field(default_factory=dict, description="Denoisers that are warm.")
    slots: dict[str, int] = Field(default_factory=dict, description="How many jobs of each lane it does at once.")
    ready: bool = Field(False, description="Whether it takes jobs.")

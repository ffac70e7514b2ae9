"""What does a worker tell of itself?"""

from pydantic import BaseModel, ConfigDict, Field, FieldSerializationInfo, field_serializer

_FOR_BROKER = "broker"


class ModelReady(BaseModel):
    """How a worker would run a denoiser now."""

    model_config = ConfigDict(frozen=True)

    backend: str = Field(description="What runs it.")
    precision: str = Field(description="What its inner layers compute in.")


class LivePlace(BaseModel):
    """Where a worker takes live streams, whose frames go past the broker."""

    model_config = ConfigDict(frozen=True)

    address: str = Field(description="Where it listens, `host:port`.")
    token: str = Field(repr=False, description="What a caller there must show. Known to whoever can read the broker.")
    streams: int = Field(description="How many it takes at once.")
    taken: int = Field(0, description="How many it had when it last told.")

    @field_serializer("token")
    def _tell_the_broker_only(self, token: str, info: FieldSerializationInfo) -> str:
        """Cards are shown to anybody who asks whether the service is ready."""
        return token if info.context == _FOR_BROKER else ""


class WorkerCard(BaseModel):
    """A live worker, as it announced itself. The card is gone when the worker has been silent for a lease's length."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(description="Name of the worker, unique among those alive.")
    pid: int = Field(description="Its process.")
    host: str = Field(description="Its machine.")
    started_at: float = Field(description="Seconds since 1970.")
    models: dict[str, ModelReady] = Field(default_factory=dict, description="Denoisers that are warm.")
    slots: dict[str, int] = Field(default_factory=dict, description="How many jobs of each lane it does at once.")
    live: LivePlace | None = Field(None, description="Where it takes live streams, if it does.")
    ready: bool = Field(False, description="Whether it takes jobs.")

    def for_broker(self) -> str:
        """As JSON, with what only the broker may know."""
        return self.model_dump_json(context=_FOR_BROKER)

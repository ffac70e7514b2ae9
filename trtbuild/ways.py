"""In which order are backends and precisions tried here? The first that is ready, and does not stray, serves."""

from dataclasses import dataclass

from trtbuild.engine import Precision


@dataclass(frozen=True, slots=True)
class Way:
    """A backend, and what its inner layers compute in."""

    backend: str
    precision: Precision | None = None  # None: what the backend takes for itself on this machine

    @property
    def is_built(self) -> bool:
        """Whether something has to be made before it can be opened."""
        return self.backend == "tensorrt" or (self.backend, self.precision) in _BUILT

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}" if self.precision else self.backend


_BUILT = {("openvino", "int8"), ("onnxruntime", "fp16")}
_ON_GPU = (
    Way("tensorrt", "fp16"),
    Way("tensorrt", "fp32"),
    Way("torch", "fp16"),
    Way("torch", "fp32"),
)
_ON_CPU = (
    Way("openvino"),  # bfloat16 where the CPU has it
    Way("openvino", "fp32"),
    Way("onnxruntime", "fp32"),
    Way("torch", "fp32"),
)
SPARE = Way("openvino")  # on the CPU wherever it is, for a job whose GPU has no memory left
BACKENDS = ("tensorrt", "torch", "openvino", "onnxruntime")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8")


def ways(*, has_gpu: bool, backend: str = "auto", precision: Precision | None = None) -> list[Way]:
    """What to try, the best first.

    Args:
        has_gpu: whether this process may use an NVIDIA GPU.
        backend: one alone, or `auto`. What has to be built has others behind it, to serve until it is.
        precision: one alone; None for any.
    """
    everything = [*(_ON_GPU if has_gpu else ()), *_ON_CPU]
    if backend == "auto" and precision is None:
        return list(dict.fromkeys(everything))
    asked = [way for way in everything if backend in ("auto", way.backend) and precision in (None, way.precision)]
    if precision is not None:
        named = [backend] if backend != "auto" else list(dict.fromkeys(way.backend for way in everything))
        asked += [Way(name, precision) for name in named]
    if any(way.is_built for way in asked):
        asked += everything
    return list(dict.fromkeys(asked or [Way(backend, precision)]))

"""What do tests of figures and tables work on? A figure of which only what matters is told."""

from typing import Any

from models.figures import Figure


def figure(denoiser: str, **told: Any) -> Figure:
    known: dict[str, Any] = {
        "weights": "abcd",
        "data": "cbsd68",
        "noise": "gaussian-25",
        "pictures": 4,
        "frames": 1,
        "backend": "openvino bf16",
        "noisy_db": 20.5,
        "restored_db": 31.0,
        "ssim": 0.88,
        "ad": None,
        "restored_8bit_db": None,
        "ms_per_megapixel": None,
        "threads": None,
        "machine": "",
    }
    return Figure(denoiser=denoiser, **{**known, **told})

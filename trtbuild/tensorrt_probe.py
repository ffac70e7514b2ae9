"""Can TensorRT be used here, and if not, why? The one file of ours about TensorRT that loads where it is not."""

import importlib
import re

OLDEST, BEYOND = (10, 16), (12, 0)  # what typings/tensorrt was held against; nobody knows what 12 will take away


def why_not() -> str | None:
    """The reason why no plan can be built or run here, or None. Imports `tensorrt` and `torch`, if they are there."""
    try:
        trt = importlib.import_module("tensorrt")
    except ModuleNotFoundError as err:
        return f"{err.name} is not installed; it comes with: pip install 'quietframe[tensorrt]'"
    except (ImportError, OSError, RuntimeError) as err:  # of libraries that are missing or do not fit the driver
        return f"tensorrt is installed but does not load: {err}"
    found = str(getattr(trt, "__version__", "unknown"))
    if not hasattr(trt, "Builder"):
        return f"this is TensorRT's lean or dispatch runtime, {found}, which builds nothing"
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:2])
    if not OLDEST <= numbers < BEYOND:
        supported = f"from {OLDEST[0]}.{OLDEST[1]} up to, but without, {BEYOND[0]}"
        return f"tensorrt is {found}; Quietframe knows versions {supported}"
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError:
        return "torch is not installed; it comes with: pip install 'quietframe[torch]'"
    except (ImportError, OSError) as err:
        return f"torch is installed but does not load: {err}"
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU; it looks with the CUDA that it was built for: " + str(torch.version.cuda)
    return None

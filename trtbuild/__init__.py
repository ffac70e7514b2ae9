"""From a network to a running engine: export to ONNX, and the backends that run the graph."""

import sys

# OpenVINO and NNCF report to their makers that they were imported, and what for, wherever this package is installed, as
# OpenVINO's own dependencies have it. A service that is given other people's pictures calls nobody on its own account.
# None: importing it fails, which both provide for.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

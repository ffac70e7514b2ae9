"""From a network to a running engine: export to ONNX, and the backends that run the graph."""

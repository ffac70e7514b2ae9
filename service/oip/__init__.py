"""The Open Inference Protocol, version 2: what its two doors, REST and gRPC, share."""

"""gRPC: the protos, what is generated from them, and the services behind the port."""

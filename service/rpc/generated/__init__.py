"""Made from the protos by `make protos`; not to be edited."""

"""Live streams: frames that go from a caller through the API to a worker and back, past broker and disk."""

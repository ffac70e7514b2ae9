"""Tells callers who asked for it that their job is over: signed, retried, and never to where it must not go."""

"""Where can a server of a test listen, that may be gone for a while and come back?"""

import contextlib
import random
import socket

# Below the ports that the system gives to outgoing connections: one that tries a closed port out of those may be given
# that very port, and is then connected to itself; or somebody else's is, and the server cannot come back.
_PORTS = range(20_000, 30_000)
_GIVEN: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens, given out once."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _GIVEN:
                _GIVEN.add(port)
                return port

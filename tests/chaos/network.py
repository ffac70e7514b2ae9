"""The way from the services to Redis, which can be cut, closed and stalled, and made whole again."""

import asyncio
import random
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

_PIECE_BYTES = 1 << 16
# Below the ports that the system gives to outgoing connections: one that tries a closed port out of those may be given
# that very port, and is then connected to itself.
_PORTS = range(20_000, 30_000)


class Relay:
    """A TCP port of this machine that leads to a server's unix socket while the network is whole."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay")
        self._thread.start()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._carriers: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.port = 0
        self._do(self._listen)

    def cut(self) -> None:
        """Every connection is reset, and new ones are refused."""
        self._do(self._close)

    def stall(self) -> None:
        """Connections are taken, or stay, and nothing moves on them."""
        self._flows.clear()
        self._do(self._listen)

    def heal(self) -> None:
        """What was sent and got stuck arrives now."""
        self._loop.call_soon_threadsafe(self._flows.set)
        self._do(self._listen)

    def close(self) -> None:
        self._do(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run_coroutine_threadsafe(step(), self._loop).result()

    async def _listen(self) -> None:
        if self._server:
            return
        while not self.port:
            tried = random.choice(_PORTS)
            with socket.socket() as probe, suppress(OSError):
                probe.bind(("127.0.0.1", tried))
                self.port = tried
        self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port)

    async def _close(self) -> None:
        if self._server:
            self._server.close()
            self._server = None
        for writer in list(self._connections):
            writer.transport.abort()
        for carrier in list(self._carriers):
            carrier.cancel()
        await asyncio.gather(*self._carriers, return_exceptions=True)

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carrier = self._loop.create_task(self._carry(reader, writer))
        self._carriers.add(carrier)
        carrier.add_done_callback(self._carriers.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        self._connections.add(writer)
        try:
            await self._flows.wait()
            answers, asking = await asyncio.open_unix_connection(str(self._target))
            writers.append(asking)
            self._connections.add(asking)
            ways = [
                self._loop.create_task(self._pump(source, sink))
                for source, sink in ((reader, asking), (answers, writer))
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # Redis is away: so is the connection
        finally:
            for one in writers:
                self._connections.discard(one)
                one.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while piece := await source.read(_PIECE_BYTES):
            await self._flows.wait()
            sink.write(piece)
            await sink.drain()

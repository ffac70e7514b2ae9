"""How do the Lua scripts get to Redis? By their hash, and by their text where the server does not know them yet."""

import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from service.broker.keys import PREFIX
from service.broker.link import Argument, AsyncLink, Link


class Script:
    """One of `scripts/*.lua`, behind the helpers of `common.lua`. Runs at once or not at all."""

    def __init__(self, name: str) -> None:
        self.source = _text("common") + _text(name)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()  # Redis names scripts so

    def run(self, link: Link, *arguments: Argument) -> Any:
        try:
            return link.execute_command("EVALSHA", self.sha, 0, PREFIX, *arguments)
        except NoScriptError:
            return link.execute_command("EVAL", self.source, 0, PREFIX, *arguments)

    async def run_async(self, link: AsyncLink, *arguments: Argument) -> Any:
        try:
            return await link.execute_command("EVALSHA", self.sha, 0, PREFIX, *arguments)
        except NoScriptError:
            return await link.execute_command("EVAL", self.source, 0, PREFIX, *arguments)


@cache
def script(name: str) -> Script:
    return Script(name)


@cache
def _text(name: str) -> str:
    return files("service").joinpath("broker", "scripts", f"{name}.lua").read_text(encoding="utf-8")

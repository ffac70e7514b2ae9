"""What does the Dockerfile say that a target runs?"""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
TARGETS = ("api", "worker-cpu", "worker-gpu")


@dataclass(slots=True, kw_only=True)
class Stage:
    """One `FROM` and what follows it."""

    base: str
    environment: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    user: str = ""
    health: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)


def stages() -> dict[str, Stage]:
    """By name, in the Dockerfile's order."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    now: Stage | None = None
    for line in re.sub(r"\\\n", " ", text).splitlines():
        verb, _, rest = line.strip().partition(" ")
        if verb == "FROM":
            base, _, name = rest.partition(" AS ")
            now = found[name] = Stage(base=base)
        elif now is None or not verb:
            continue
        elif verb == "ENV":
            now.environment |= dict(word.split("=", 1) for word in shlex.split(rest))
        elif verb == "ENTRYPOINT":
            now.entrypoint = json.loads(rest)
        elif verb == "CMD":
            now.command = json.loads(rest)
        elif verb == "USER":
            now.user = rest
        elif verb == "HEALTHCHECK":
            now.health = json.loads(rest.partition(" CMD ")[2])
        else:
            now.steps.append(line)
    return found

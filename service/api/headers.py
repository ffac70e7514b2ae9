"""What a caller's request headers ask for, read into plain values; what makes no sense asks for nothing."""

import re
from dataclasses import dataclass
from urllib.parse import quote

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
_SAFE_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """The parts of `Prefer` (RFC 7240) that are honoured."""

    respond_async: bool = False
    wait_s: int | None = None


def preference_of(values: list[str]) -> Preference:
    """Read every `Prefer` header; of a preference given twice the first counts, as the RFC has it."""
    respond_async, wait_s = False, None
    for part in ",".join(values).split(","):
        name, _, value = part.split(";")[0].partition("=")
        word, value = name.strip().lower(), value.strip().strip('"')
        if word == "respond-async":
            respond_async = True
        elif word == "wait" and wait_s is None and re.fullmatch(r"\d{1,6}", value):
            wait_s = int(value)
    return Preference(respond_async=respond_async, wait_s=wait_s)


def wants_page(accept: str | None) -> bool:
    """Whether it is a browser that asks, for something to look at: no other client names HTML."""
    return any(part.split(";")[0].strip().lower() == "text/html" for part in (accept or "").split(","))


def wants_json(accept: str | None) -> bool:
    """Whether JSON is named in `Accept`, and not liked less than an image."""
    likings: dict[str, float] = {}
    for part in (accept or "").split(","):
        media, *params = [piece.strip().lower() for piece in part.split(";")]
        weight = next((param[2:] for param in params if param.startswith("q=")), "1")
        likings[media] = float(weight) if re.fullmatch(r"[01](\.\d{1,3})?", weight) else 1.0
    json = likings.get("application/json", 0.0)
    image = max((liking for media, liking in likings.items() if media.startswith("image/")), default=0.0)
    return json > 0 and json >= image


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether `If-None-Match` names this tag; a weak tag counts as its strong one (RFC 9110, 13.1.2)."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


class Unsatisfiable(ValueError):
    """The range begins behind the last byte."""


def range_of(value: str | None, size: int) -> tuple[int, int] | None:
    """The bytes from first to last, both counted, that `Range` asks for.

    None stands for all of them, which also answers several ranges at once and whatever cannot be read: RFC 9110
    lets a server ignore those, and joining many small ranges is a way to make it work for nothing.

    Raises:
        Unsatisfiable: no byte of the range exists.
    """
    found = _RANGE.fullmatch((value or "").strip().replace(" ", ""))
    if not found or found.group(1, 2) == ("", ""):
        return None
    first, last = found.groups()
    if not first:  # the last N bytes
        if int(last) == 0 or size == 0:
            raise Unsatisfiable(value)
        return max(0, size - int(last)), size - 1
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise Unsatisfiable(value)
    return int(first), min(int(last), size - 1) if last else size - 1


def attachment(file_name: str) -> str:
    """`Content-Disposition` (RFC 6266): a plain name for all, the true one for who can read it."""
    plain = _SAFE_NAME.sub("-", file_name).strip("-.") or "result"
    exact = "" if plain == file_name else f"; filename*=UTF-8''{quote(file_name, safe='')}"
    return f'attachment; filename="{plain}"{exact}'

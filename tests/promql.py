"""Which metrics and labels does a PromQL expression speak of?"""

import re
from dataclasses import dataclass

_STRINGS = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'')
_MATCHERS = re.compile(r"\{([^{}]*)\}")
_RANGES = re.compile(r"\[[^\]]*\]")
_GROUPS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
_OFFSETS = re.compile(r"\boffset\s+\w+")
_NAME = re.compile(r"(?<![\w:.])([A-Za-z_:][\w:]*)(?!\s*\()(?![\w:])")
_WORDS = {"and", "or", "unless", "bool", "inf", "nan", "atan2"}
_LABEL = re.compile(r"([A-Za-z_]\w*)\s*(?:=~|!~|!=|=)")


@dataclass(frozen=True, slots=True)
class Spoken:
    metrics: frozenset[str]
    labels: frozenset[str]


def spoken_of(expression: str) -> Spoken:
    text = _STRINGS.sub('""', re.sub(r"#.*", "", expression))
    labels = {name for inside in _MATCHERS.findall(text) for name in _LABEL.findall(inside)}
    text = _RANGES.sub(" ", _MATCHERS.sub(" ", text))
    labels |= {name.strip() for inside in _GROUPS.findall(text) for name in inside.split(",") if name.strip()}
    text = _OFFSETS.sub(" ", _GROUPS.sub(" ", text))
    names = {name for name in _NAME.findall(text) if name.lower() not in _WORDS}
    return Spoken(frozenset(names), frozenset(labels))

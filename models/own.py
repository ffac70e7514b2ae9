"""Which denoisers were adapted to somebody's own footage, and what is known of each before a weight is read?

A models directory holds, for each, `<name>.json` that describes it, and beside it its weights and graphs, whose names
carry the first digits of the weights' hash. The description is written last and replaced in one step: what it names is
there. Needs nothing but the standard library.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from models import catalogue
from models.cards import Card, Training, card_of
from models.catalogue import CATALOGUE, DESCRIBED, DenoiserSpec, Kind
from models.errors import QuietframeError, UnknownDenoiser

log = logging.getLogger(__name__)
_T = TypeVar("_T")

FORMAT = 1
MOST_BYTES = 64 * 1024
NAME_RULE = "lower-case letters and digits, with single dots, hyphens or underscores between; at most 60"
_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_LONGEST_NAME = 60
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGITS = 12  # of the hash that file names carry
_CHUNK_BYTES = 1 << 20


class NameTaken(QuietframeError):
    """A denoiser of this name is there already, or the name cannot be one."""


class BrokenDenoiser(UnknownDenoiser):
    """What describes an adapted denoiser, or one of its files, is damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """How it was adapted. Decibels are estimates, for there were no clean frames to measure against."""

    recipe: str
    data: str
    minutes: float
    steps: int
    seed: int
    device: str
    sigma_dark: float  # standard deviation of the noise that was found, at black, on the scale [0, 1]
    sigma_light: float  # at white
    blotch: float  # see `models/training/noise_fit.py`
    estimate_before_db: float | None  # of frames held out; None where the estimate gave nothing
    estimate_after_db: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnDenoiser:
    """A denoiser of the catalogue with weights of its own."""

    name: str
    base: str
    made_at: str  # ISO 8601, UTC
    weights_sha256: str
    graphs_sha256: Mapping[str, str]  # by the base's stage
    adaptation: Adaptation

    @property
    def version(self) -> str:
        """What file names carry, so that a denoiser that is replaced is not taken for the one before."""
        return f"{self.name}-{self.weights_sha256[:_DIGITS]}"

    def spec_in(self, folder: Path) -> DenoiserSpec:
        """As the catalogue has others: its stages are the base's under names of its own."""
        base = DESCRIBED[self.base]
        found = self.adaptation
        return replace(
            base,
            name=self.name,
            title=f"{base.title}; adapted to {found.data or 'own footage'}",
            stages=tuple(replace(stage, name=f"{self.version}-{stage.name}") for stage in base.stages),
            trained_sigma=(found.sigma_dark, found.sigma_light),
            weights=(self.version,),
            home=folder,
            adapted_from=self.base,
        )

    def files_in(self, folder: Path) -> dict[Path, str]:
        """Its weights and graphs, and their hashes."""
        graphs = {folder / f"{self.version}-{name}.onnx": sha256 for name, sha256 in self.graphs_sha256.items()}
        return {folder / f"{self.version}.safetensors": self.weights_sha256, **graphs}

    def card(self) -> Card:
        """Nothing was measured of it: nobody had clean frames."""
        found = self.adaptation
        training = Training(
            weights=self.version,
            sha256=self.weights_sha256,
            recipe=found.recipe,
            data=found.data,
            minutes=found.minutes,
            steps=found.steps,
            seed=found.seed,
            device=found.device,
        )
        dark, light = (255 * sigma for sigma in (found.sigma_dark, found.sigma_light))
        told = (
            f"Adapted from {self.base} to footage whose noise was found to have level {dark:.1f} at black and "
            f"{light:.1f} at white on the 8-bit scale, without clean frames; on other footage and noise {self.base} "
            "is likely to be better."
        )
        if found.estimate_before_db is not None and found.estimate_after_db is not None:
            told += (
                f" On frames held out PSNR is estimated to have gone from {found.estimate_before_db:.2f} to "
                f"{found.estimate_after_db:.2f} dB."
            )
        return Card(name=self.name, training=(training,), limits=told)


class Library:
    """The denoisers that can be asked for by name: the catalogue's, and those of a models directory.

    The directory is looked at anew at every call, so what is put there is known at once. Any thread may ask.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, tuple[tuple[int, ...], OwnDenoiser | BrokenDenoiser]] = {}

    def find(self, name: str, kind: Kind | None = None) -> DenoiserSpec:
        """As `catalogue.find`, over both.

        Raises:
            UnknownDenoiser: no such name, or a video denoiser asked for an image.
            BrokenDenoiser: it is there, and what describes it is damaged.
        """
        if name in CATALOGUE or name == "auto":  # which the directory has no say in
            return catalogue.find(name, kind)
        self.own(name)  # if it is broken, that is what to tell
        return catalogue.find(name, kind, {one.name: one.spec_in(self.folder) for one in self.all_own()})

    def own(self, name: str) -> OwnDenoiser | None:
        """The adapted denoiser of this name, if there is one.

        Raises:
            BrokenDenoiser: what describes it is damaged.
        """
        if not _is_name(name):
            return None
        path = self.folder / f"{name}.json"
        try:
            facts = path.stat()
        except OSError:
            return None
        seen = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        known = self._read.get(name)
        if known is None or known[0] != seen:
            known = seen, _read(path)
            self._read[name] = known
            if isinstance(known[1], BrokenDenoiser):
                log.warning("%s", known[1])  # once, and again when it has changed
        if isinstance(known[1], BrokenDenoiser):
            raise BrokenDenoiser(str(known[1]))
        return known[1]

    def all_own(self) -> list[OwnDenoiser]:
        """Every adapted denoiser that is sound, by name; a broken one is told of in the log."""
        found = []
        try:
            names = sorted(path.stem for path in self.folder.iterdir() if path.suffix == ".json")
        except OSError:
            return []  # nothing was adapted yet
        for name in names:
            try:
                one = self.own(name)
            except BrokenDenoiser:
                continue
            if one is not None:
                found.append(one)
        return found

    def specs(self) -> list[DenoiserSpec]:
        """Of all that can be served: the catalogue's, then the adapted ones."""
        return [*CATALOGUE.values(), *(one.spec_in(self.folder) for one in self.all_own())]

    def card_of(self, name: str) -> Card:
        """As `cards.card_of`, over both.

        Raises:
            UnknownDenoiser: it has none.
        """
        own = None if name in CATALOGUE else self.own(name)
        return card_of(name) if own is None else own.card()

    def check_files(self, own: OwnDenoiser) -> None:
        """
        Raises:
            BrokenDenoiser: one of its files is not there, or not what it was.
        """
        for path, sha256 in own.files_in(self.folder).items():
            if not path.is_file():
                raise BrokenDenoiser(f"model {own.name!r} is damaged: {path.name} is not in {path.parent}")
            if sha256_of(path) != sha256:
                raise BrokenDenoiser(f"model {own.name!r} is damaged: {path.name} is not what was written")

    def check_new_name(self, name: str, *, replaces: bool = False) -> None:
        """
        Raises:
            NameTaken: an adapted denoiser cannot be given this name.
        """
        if not _is_name(name):
            raise NameTaken(f"{name!r} cannot be a model's name; names are {NAME_RULE}")
        if name in DESCRIBED or name == "auto":
            raise NameTaken(f"{name!r} is a model that comes with Quietframe; choose another name")
        if not replaces and (self.folder / f"{name}.json").exists():
            raise NameTaken(f"there is a model {name!r} in {self.folder}; --replace takes its place")

    def add(self, own: OwnDenoiser) -> None:
        """Write down a denoiser whose files are in the directory; from here on it is known by its name.

        The files of one that it replaces are deleted. Who is about to open them finds them gone, and asks again.
        """
        path = self.folder / f"{own.name}.json"
        try:
            before = self.own(own.name)
        except BrokenDenoiser:
            before = None
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(_written(own), indent=2) + "\n")
        unfinished.replace(path)
        if before is not None:
            for old in set(before.files_in(self.folder)) - set(own.files_in(self.folder)):
                old.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _is_name(name: str) -> bool:
    return len(name) <= _LONGEST_NAME and _NAME.fullmatch(name) is not None


def _written(own: OwnDenoiser) -> dict[str, Any]:
    return {"format": FORMAT, **asdict(own)}


def _read(path: Path) -> OwnDenoiser | BrokenDenoiser:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        return _parsed(json.loads(content, parse_constant=_refuse), path.stem)
    except (OSError, ValueError, RecursionError) as err:
        return BrokenDenoiser(f"model {path.stem!r} is damaged: {path} cannot be read: {err}")


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _parsed(written: object, name: str) -> OwnDenoiser:
    """
    Raises:
        ValueError: it does not describe an adapted denoiser of this name.
    """
    fields = _Fields(written)
    if fields.take("format", int) != FORMAT:
        raise ValueError(f"its format is {fields.take('format', int)}; read here is {FORMAT}")
    if fields.take("name", str) != name:
        raise ValueError(f"its name is {fields.take('name', str)[:_LONGEST_NAME]!r}")
    if name in DESCRIBED or name == "auto":
        raise ValueError("the name belongs to a model that comes with Quietframe")
    base = DESCRIBED.get(fields.take("base", str))
    if base is None or not base.weights:
        raise ValueError(f"its base is {fields.take('base', str)[:_LONGEST_NAME]!r}, which is not known here")
    graphs = _Fields(fields.take("graphs_sha256", dict))
    if set(graphs.names()) != {stage.name for stage in base.stages}:
        raise ValueError(f"its graphs are not those of {base.name}")
    facts = _Fields(fields.take("adaptation", dict))
    return OwnDenoiser(
        name=name,
        base=base.name,
        made_at=fields.take("made_at", str),
        weights_sha256=fields.hash("weights_sha256"),
        graphs_sha256={stage: graphs.hash(stage) for stage in graphs.names()},
        adaptation=Adaptation(
            recipe=facts.take("recipe", str),
            data=facts.take("data", str),
            minutes=facts.number("minutes", 0, 1e9),
            steps=facts.take("steps", int),
            seed=facts.take("seed", int),
            device=facts.take("device", str),
            sigma_dark=facts.number("sigma_dark", 0, 10),
            sigma_light=facts.number("sigma_light", 0, 10),
            blotch=facts.number("blotch", 0, 1e9),
            estimate_before_db=facts.number_or_none("estimate_before_db", -1000, 1000),
            estimate_after_db=facts.number_or_none("estimate_after_db", -1000, 1000),
        ),
    )


class _Fields:
    """What JSON gave, taken field by field; what else is there is left alone, for a later release may write more."""

    def __init__(self, written: object) -> None:
        if not isinstance(written, dict):
            raise ValueError("it is no JSON object where one should be")
        self._written: dict[str, Any] = written

    def names(self) -> list[str]:
        return list(self._written)

    def take(self, name: str, kind: type[_T]) -> _T:
        value = self._written.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"its {name} is missing, or not of the right kind")
        return value

    def hash(self, name: str) -> str:
        value = self.take(name, str)
        if not _SHA256.fullmatch(value):
            raise ValueError(f"its {name} is no SHA-256")
        return value

    def number(self, name: str, least: float, most: float) -> float:
        value = self._written.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"its {name} is missing, or no number from {least:g} to {most:g}")
        return float(value)

    def number_or_none(self, name: str, least: float, most: float) -> float | None:
        return None if self._written.get(name) is None else self.number(name, least, most)

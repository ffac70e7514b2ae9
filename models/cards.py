"""How a denoiser's weights came to be, and what was measured of them: its card.

The first is in `models/shipped/<denoiser>.json`, the second in `figures.csv` beside it. `python -m models.cards` writes
the cards of all shipped weights anew. Needs nothing but the standard library.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.catalogue import CATALOGUE, DenoiserSpec, Taught
from models.errors import UnknownDenoiser
from models.figures import FIGURES_FILE, GAUSSIAN, Figure, fingerprint, fullest, read_figures
from models.weights import WEIGHTS_DIR

CARDS_DIR = WEIGHTS_DIR

# Test set -> level of Gaussian noise on the 8-bit scale, or the name of another noise -> figure -> value; `noisy`,
# `restored` and `restored_8bit` are decibels.
Quality = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The runs of a recipe that made one of the weights files."""

    weights: str
    sha256: str
    recipe: str
    data: str
    minutes: float
    steps: int
    seed: int
    device: str
    runs: int = 1
    begun_with: dict[str, float] = field(default_factory=dict)  # minutes of other recipes that its first weights are of


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """All that was measured of a denoiser."""

    name: str
    training: tuple[Training, ...]
    limits: str
    quality: Quality = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """For a terminal: a paragraph a training run, a line a figure, the limits."""
        lines = [
            f"{run.weights}: recipe {run.recipe} on {run.data}; {run.steps} steps in {run.minutes:g} minutes on "
            f"{run.device}{f', {run.runs} runs' if run.runs > 1 else ''}"
            f"{''.join(f', after {minutes:g} of {recipe}' for recipe, minutes in run.begun_with.items())}"
            f", seed {run.seed}; sha256 {run.sha256[:16]}"
            for run in self.training
        ]
        for data, levels in self.quality.items():
            for level, figures in levels.items():
                noise = f"sigma {level}" if level[0].isdigit() else f"{level} noise"
                told = ", ".join(f"{name} {value:g}" for name, value in figures.items())
                lines.append(f"{data}, {noise}: {told}")
        return "\n".join([*lines, self.limits])


def card_of(name: str, cards_dir: Path = CARDS_DIR, figures_file: Path = FIGURES_FILE) -> Card:
    """Read a denoiser's card, with what was measured of its weights, and of these alone.

    Raises:
        UnknownDenoiser: it has none.
    """
    path = cards_dir / f"{name}.json"
    if not path.is_file():
        raise UnknownDenoiser(f"there is no card {path.name} in {cards_dir}")
    written = json.loads(path.read_text())
    training = tuple(Training(**run) for run in written["training"])
    own = fingerprint(run.sha256 for run in training)
    measured = [one for one in read_figures(figures_file) if (one.denoiser, one.weights) == (name, own)]
    return Card(name=written["name"], training=training, limits=written["limits"], quality=_quality_of(measured))


def renew_card(spec: DenoiserSpec, weights_dir: Path = WEIGHTS_DIR, cards_dir: Path = CARDS_DIR) -> Card:
    """Write what the weights files tell of their making.

    Raises:
        UnknownDenoiser: a weights file is not there.
    """
    card = Card(name=spec.name, training=training_of(spec, weights_dir), limits=_limits_of(spec))
    written = {key: value for key, value in card.as_dict().items() if key != "quality"}
    cards_dir.mkdir(parents=True, exist_ok=True)
    path = cards_dir / f"{card.name}.json"
    text = json.dumps(written, indent=2) + "\n"
    if not path.is_file() or path.read_text() != text:
        unfinished = path.with_suffix(".part")
        unfinished.write_text(text)
        unfinished.replace(path)
    return card


def training_of(spec: DenoiserSpec, weights_dir: Path = WEIGHTS_DIR) -> tuple[Training, ...]:
    """The runs that made a denoiser's weights files, one for each; none where it is no network.

    Raises:
        UnknownDenoiser: a weights file is not there.
    """
    return tuple(_training_of(name, weights_dir, spec.weights) for name in spec.weights)


def _quality_of(figures: Iterable[Figure]) -> Quality:
    quality: Quality = {}
    for one in fullest(figures).values():
        told = {
            "pictures": float(one.pictures),
            "frames": float(one.frames),
            "noisy": one.noisy_db,
            "restored": one.restored_db,
            "ssim": one.ssim,
            "ad": one.ad,
            "restored_8bit": one.restored_8bit_db,
            "ms_per_megapixel": one.ms_per_megapixel,
        }
        level = one.noise.removeprefix(GAUSSIAN)
        quality.setdefault(one.data, {})[level] = {name: value for name, value in told.items() if value is not None}
    return quality


def _training_of(name: str, weights_dir: Path, beside: Sequence[str]) -> Training:
    path = weights_dir / f"{name}.safetensors"
    if not path.is_file():
        raise UnknownDenoiser(f"there are no weights {path.name} in {weights_dir}")
    content = path.read_bytes()
    # The format's first eight bytes are the length of a JSON header, little end first; facts are its `__metadata__`.
    length = int.from_bytes(content[:8], "little")
    facts = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    every = list(_runs_of(facts))
    runs = [run for run in every if run.get("recipe") == facts.get("recipe")]
    begun_with: dict[str, float] = {}
    apart = {*beside} - {name}  # they have an entry of their own
    for run in every:
        recipe = run.get("recipe", "")
        if recipe != facts.get("recipe") and recipe not in apart:
            begun_with[recipe] = round(begun_with.get(recipe, 0) + float(run.get("minutes", 0)), 1)
    return Training(
        weights=name,
        sha256=hashlib.sha256(content).hexdigest(),
        recipe=facts.get("recipe", name),
        data=facts.get("data", ""),
        minutes=round(sum(float(run.get("minutes", 0)) for run in runs), 1),
        steps=sum(int(run.get("steps", 0)) for run in runs),
        seed=int(facts.get("seed", 0)),
        device=facts.get("device", ""),
        runs=len(runs),
        begun_with=begun_with,
    )


def _runs_of(facts: dict[str, str]) -> Iterator[dict[str, str]]:
    """The facts of a run, and of all before it that its weights have been through."""
    yield facts
    for earlier in json.loads(facts.get("started_from", "{}")).values():
        yield from _runs_of(earlier)


def _limits_of(spec: DenoiserSpec) -> str:
    if not spec.weights:
        return (
            "A formula, not a network: it knows nothing of pictures but that they are like themselves. It takes noise "
            "for white and Gaussian, of the level that it is told or, where it is told none, of one that is estimated."
        )
    low, high = (round(level * 255) for level in spec.trained_sigma)
    told = "blind to the noise level" if spec.sigma is None else "told the noise level"
    kinds = " and ".join(_KINDS[kind].format(low=low, high=high) for kind in spec.taught)
    grey = "" if "grey" in spec.taught else "Of a grey picture, whose planes carry one noise, it takes little away. "
    return f"Trained on {kinds}; {told}. Stronger noise is beyond it. {grey}" + (
        "Cameras differ: of one unlike those it has seen it may leave much, or take fine texture along with the noise."
        if "camera" in spec.taught
        else "Noise of cameras, film and compression, which neighbouring pixels share and which follows brightness, it "
        "takes out in part or not at all."
    )


_KINDS: dict[Taught, str] = {
    "gaussian": "additive white Gaussian noise of level {low} to {high} on the 8-bit scale",
    "grey": "the same in grey pictures, one noise in all planes",
    "camera": "pairs of noisy and clean photographs, noise made up after that of cameras",
    "mixed": "Gaussian noise under salt and pepper",
    "signal-dependent": "noise that follows brightness, in linear light",
    "poisson-gaussian": "Poisson and Gaussian noise together",
}


if __name__ == "__main__":
    for known in CATALOGUE.values():
        print(renew_card(known).text(), file=sys.stdout)

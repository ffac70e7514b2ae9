"""What was measured of a denoiser, and how its weights came to be: its card, `models/shipped/<denoiser>.json`.

`python -m models.cards` writes the cards of all shipped weights anew. Needs nothing but the standard library.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from models.catalogue import CATALOGUE, DenoiserSpec, find
from models.errors import UnknownDenoiser
from models.weights import WEIGHTS_DIR

CARDS_DIR = WEIGHTS_DIR

Figures = dict[str, float]
# test set -> noise level on the 8-bit scale, or "real" -> figure -> value; decibels but for `ssim` and `pictures`
Quality = dict[str, dict[str, Figures]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The runs that made one of the weights files: the last, and those of the same recipe that it went on from."""

    weights: str
    sha256: str
    recipe: str
    data: str
    minutes: float
    steps: int
    seed: int
    device: str
    runs: int = 1


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
            f"{run.device}{f', {run.runs} runs' if run.runs > 1 else ''}, seed {run.seed}; sha256 {run.sha256[:16]}"
            for run in self.training
        ]
        for data, levels in self.quality.items():
            for level, figures in levels.items():
                noise = "real noise" if level == "real" else f"sigma {level}"
                told = ", ".join(f"{name} {value:g}" for name, value in figures.items())
                lines.append(f"{data}, {noise}: {told}")
        return "\n".join([*lines, self.limits])


def card_of(name: str, cards_dir: Path = CARDS_DIR) -> Card:
    """Read a denoiser's card.

    Raises:
        UnknownDenoiser: it has none.
    """
    path = cards_dir / f"{name}.json"
    if not path.is_file():
        raise UnknownDenoiser(f"there is no card {path.name} in {cards_dir}")
    written = json.loads(path.read_text())
    training = tuple(Training(**run) for run in written.pop("training"))
    return Card(training=training, **written)


def write_card(card: Card, cards_dir: Path = CARDS_DIR) -> None:
    cards_dir.mkdir(parents=True, exist_ok=True)
    path = cards_dir / f"{card.name}.json"
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(card.as_dict(), indent=2) + "\n")
    unfinished.replace(path)


def renew_card(spec: DenoiserSpec, weights_dir: Path = WEIGHTS_DIR, cards_dir: Path = CARDS_DIR) -> Card:
    """Write what the weights files tell of their making. Figures of other weights are dropped.

    Raises:
        UnknownDenoiser: a weights file is not there.
    """
    training = tuple(_training_of(name, weights_dir) for name in spec.weights)
    card = Card(name=spec.name, training=training, limits=_limits_of(spec))
    try:
        before = card_of(spec.name, cards_dir)
    except UnknownDenoiser:
        pass
    else:
        if [run.sha256 for run in before.training] == [run.sha256 for run in training]:
            card = replace(card, quality=before.quality)
    write_card(card, cards_dir)
    return card


def record_quality(
    name: str,
    data: str,
    level: str,
    figures: Mapping[str, float],
    *,
    weights_dir: Path = WEIGHTS_DIR,
    cards_dir: Path = CARDS_DIR,
) -> Card:
    """Put figures into a denoiser's card, in place of older ones of the same test set and level.

    Args:
        name: of the denoiser.
        data: the test set.
        level: of the noise on the 8-bit scale, such as `25`; or `real`.
        figures: what was measured.
        weights_dir: where the weights lie that were measured.
        cards_dir: where the card lies.

    Raises:
        UnknownDenoiser: no such denoiser, or its weights are not there.
    """
    card = renew_card(find(name), weights_dir, cards_dir)
    quality = {**card.quality, data: {**card.quality.get(data, {}), level: dict(figures)}}
    card = replace(card, quality=quality)
    write_card(card, cards_dir)
    return card


def markdown_of(cards: Iterable[Card]) -> str:
    """The figures of cards as a table, a row for each test set and noise level."""
    rows = [
        "| model | test set | sigma | pictures | noisy | restored | 8-bit input | SSIM |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for card in cards:
        for data, levels in card.quality.items():
            for level, one in levels.items():
                rounded = f"{one['restored_8bit']:.2f}" if "restored_8bit" in one else ""
                rows.append(
                    f"| {card.name} | {data} | {level} | {one['pictures']:g} | {one['noisy']:.2f} | "
                    f"**{one['restored']:.2f}** | {rounded} | {one['ssim']:.4f} |"
                )
    return "\n".join(rows)


def _training_of(name: str, weights_dir: Path) -> Training:
    path = weights_dir / f"{name}.safetensors"
    if not path.is_file():
        raise UnknownDenoiser(f"there are no weights {path.name} in {weights_dir}")
    content = path.read_bytes()
    # The format's first eight bytes are the length of a JSON header, little end first; facts are its `__metadata__`.
    length = int.from_bytes(content[:8], "little")
    facts = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    runs = _runs_of(facts)
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
    )


def _runs_of(facts: dict[str, str]) -> list[dict[str, str]]:
    """The facts of a run, and of those before it that it took the same network from."""
    runs = [facts]
    for earlier in json.loads(facts.get("started_from", "{}")).values():
        if earlier.get("recipe") == facts.get("recipe"):
            runs += _runs_of(earlier)
    return runs


def _limits_of(spec: DenoiserSpec) -> str:
    low, high = (round(level * 255) for level in spec.trained_sigma)
    told = "blind to the noise level" if spec.sigma is None else "told the noise level"
    return (
        f"Trained on additive white Gaussian noise of level {low} to {high} on the 8-bit scale, {told}. "
        "Stronger noise is beyond it. Noise of cameras, film and compression, which neighbouring pixels share and "
        "which follows brightness, it takes out in part or not at all."
    )


if __name__ == "__main__":
    for known in CATALOGUE.values():
        print(renew_card(known).text(), file=sys.stdout)

"""Runs a recipe for so many minutes: on one CPU core or a GPU, logged, resumable after a kill.

Checkpoints are safetensors and JSON; nothing is pickled. What a step sees is drawn from (seed, step), so a resumed run
draws what the unbroken one would have drawn.
"""

import copy
import csv
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.catalogue import DenoiserSpec
from models.networks import WIRINGS
from models.training.curves import draw_log
from models.training.material import SMALLEST_SIDE_PX, Material, read_material
from models.training.recipe import GAUSSIAN_LEVELS, Phase, Recipe, middle_of
from models.weights import build_wired

CHECKPOINT_EVERY_S = 120
REPORT_EVERY_S = 30
WATCHED_SIZE_PX = 128  # or as large as the run's own crops
WATCHED_CLIP_SIZE_PX = 96
WATCHED_PAIRS = "pairs"  # how held-out real pairs are called where other noise has its level
WATCHED_GREY = "grey 25"  # and grey pictures with Gaussian noise of level 25
WATCHED_FOOTAGE = "footage 25"  # and footage, of which made-up motion is no measure
_MULTIPLIES = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)  # by weights that torch.autocast rounds
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True, slots=True)
class Report:
    """A line of the training log."""

    step: int
    minutes: float
    learning_rate: float
    loss: float
    psnr_db: dict[str, float] | None = None  # of held-out pictures, by watched noise, when just measured


class Growing(Protocol):
    """A network of several frames that can begin as one of a single frame."""

    def begin_as(self, single: Mapping[str, Tensor]) -> None: ...


class Source(Protocol):
    """What a run learns from, and what it is watched by."""

    @property
    def watched(self) -> tuple[str, ...]:
        """The names of what `watch` tells."""

    def draw(self, rng: np.random.Generator, phase: Phase) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy frames [N, T, 3, H, W], what a denoiser is told of their noise [N], and what should come of them."""

    def watch(self, restore: Callable[[Tensor, Tensor], Tensor]) -> dict[str, float]:
        """PSNR on what is kept out of training, given what restores noisy frames of a sigma."""


def train(
    recipe: Recipe,
    folders: Sequence[Path],
    out: Path,
    *,
    minutes: float,
    resume: bool = False,
    start_from: Path | None = None,
    device: str = "cpu",
    threads: int = 1,
    compiles: bool = False,
    weights_dir: Path | None = None,
    on_report: Callable[[Report], None] = lambda _: None,
) -> None:
    """Train, and write the averaged weights to `out` with the run's facts as metadata.

    Args:
        recipe: what to train.
        folders: clean pictures and footage.
        out: a .safetensors file; beside it go `.checkpoint.safetensors`, `.csv`, and at the end its plot, `.svg`.
        minutes: of training in all, earlier parts of a resumed run included; the learning rate follows a cosine over
            it.
        resume: go on from the checkpoint beside `out`.
        start_from: finished weights of an earlier run of the recipe to begin with, instead of fresh ones.
        device: a torch device.
        threads: of the CPU; one is fastest on a machine that is shared.
        compiles: let torch compile the network's parts first, a minute or two that long runs on a GPU earn back.
        weights_dir: where the finished weights lie that the recipe starts parts from; `out`'s folder unless told.
        on_report: told of progress.

    Raises:
        FileNotFoundError: no pictures, or none of the kind the recipe wants; no checkpoint to resume from, or no
            weights to start from.
        ValueError: `start_from` holds weights of another network.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    largest_px = max(phase.size_px for phase in recipe.phases)
    material = read_material(folders, with_clips=recipe.frames > 1, smallest_px=max(SMALLEST_SIDE_PX, largest_px))
    if recipe.pair_share and not material.pairs:
        raise FileNotFoundError(f"recipe {recipe.name} wants photographs taken noisy and clean, *_real and *_mean")
    run = Run(recipe, CleanSource(recipe, material, device), out, minutes, device, weights_dir or out.parent)
    if start_from:
        run.start_from(start_from)
    if resume:
        run.resume()
    if compiles:
        run.compile()
    for report in run.steps():
        on_report(report)
    run.finish(folders)
    draw_log(out.with_suffix(".csv"))


class CleanSource:
    """Clean pictures and footage that the recipe's noise is added to, and pairs that were taken."""

    def __init__(self, recipe: Recipe, material: Material, device: str) -> None:
        self._recipe, self._material, self._device = recipe, material, device
        grey, pairs = ([WATCHED_GREY] if recipe.grey_share else []), ([WATCHED_PAIRS] if recipe.pair_share else [])
        films = [WATCHED_FOOTAGE] if recipe.footage_share and material.held_out_clips else []
        self.watched = (*recipe.watched, *grey, *pairs, *films)

    def draw(self, rng: np.random.Generator, phase: Phase) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy frames, what a denoiser is told of their noise, and the clean frames."""
        recipe, material = self._recipe, self._material
        of_pairs = round(recipe.pair_share * phase.batch)
        if recipe.frames == 1:
            clean = material.crops(rng, phase.batch - of_pairs, phase.size_px)
        else:
            clean = material.clip_crops(rng, phase.batch, recipe.frames, phase.size_px, recipe.footage_share)
        clean = clean.to(self._device)
        greys = _some(rng, recipe.grey_share, len(clean)) if recipe.grey_share else []
        clean[greys] = grey_of(clean[greys])
        noisy, sigma = recipe.noise(clean, int(rng.integers(2**62)))
        noisy[greys] = noisy[greys, :, 1:2].expand(-1, -1, 3, -1, -1)
        if of_pairs:
            taken_noisy, taken_clean = material.varied_pair_crops(rng, of_pairs, phase.size_px)
            noisy = torch.cat([noisy, taken_noisy.to(self._device)])
            clean = torch.cat([clean, taken_clean.to(self._device)])
            sigma = torch.cat([sigma, sigma.new_zeros(of_pairs)])  # nobody knows: such recipes make blind networks
        return noisy, sigma, clean

    def watch(self, restore: Callable[[Tensor, Tensor], Tensor]) -> dict[str, float]:
        """On photographs kept out of training, and clips made up over them; and on footage kept out."""
        recipe, rng = self._recipe, np.random.default_rng(self._recipe.seed)
        held = Material(self._material.held_out, (), (), pairs=self._material.held_out_pairs)
        size_px = max(WATCHED_SIZE_PX, recipe.phases[-1].size_px)
        if recipe.frames == 1:
            clean = torch.cat([held.crops(rng, 1, size_px) for _ in range(16)])
        else:
            clean = held.clip_crops(rng, 8, recipe.frames, WATCHED_CLIP_SIZE_PX, 0.0)
        examples = {name: (*noise(clean, seed), clean) for seed, (name, noise) in enumerate(recipe.watched.items())}
        if recipe.grey_share:
            grey = grey_of(clean)
            noisy, sigma = GAUSSIAN_LEVELS["25"](grey, len(examples))
            examples[WATCHED_GREY] = (noisy[:, :, 1:2].expand_as(noisy), sigma, grey)
        if recipe.pair_share and held.pairs:
            taken_noisy, taken_clean = held.pair_crops(rng, 16, size_px)
            examples[WATCHED_PAIRS] = (taken_noisy, taken_noisy.new_zeros(16), taken_clean)
        if WATCHED_FOOTAGE in self.watched:
            films = Material((), self._material.held_out_clips, ())
            clean = films.clip_crops(rng, 8, recipe.frames, WATCHED_CLIP_SIZE_PX, 1.0)
            examples[WATCHED_FOOTAGE] = (*GAUSSIAN_LEVELS["25"](clean, len(examples)), clean)
        return {name: _psnr_db(restore(noisy, sigma), clean) for name, (noisy, sigma, clean) in examples.items()}


def _some(rng: np.random.Generator, share: float, count: int) -> list[int]:
    """That share of so many examples: small batches have it over many steps. Anywhere: their order tells the noise."""
    return [int(one) for one in rng.permutation(count)[: int(share * count + rng.random())]]


def grey_of(clean: Tensor) -> Tensor:
    """[N, T, 3, H, W] in colour to the same in grey, all planes alike."""
    luma = (clean * clean.new_tensor(LUMA)[:, None, None]).sum(2, keepdim=True)
    return luma.expand_as(clean)


class Run:
    """A recipe at work: its network, its optimizer and its files."""

    def __init__(
        self, recipe: Recipe, source: Source, out: Path, minutes: float, device: str, weights_dir: Path
    ) -> None:
        self._recipe, self._source, self._out, self._device = recipe, source, out, device
        self._minutes = minutes
        self._network = build_wired(recipe.network).to(device)
        self._network = self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._earlier: dict[str, dict[str, str]] = {}  # facts of the runs that the first weights came from
        for part, name in recipe.starts_from.items():
            self._load_part(self._network.get_submodule(part), weights_dir / f"{name}.safetensors")
        if recipe.grows_from:
            self._grow(weights_dir / f"{recipe.grows_from}.safetensors")
        for part in recipe.frozen:
            self._network.get_submodule(part).requires_grad_(False)
        self._trained = {name: p for name, p in self._network.named_parameters() if p.requires_grad}
        decay = [p for p in self._trained.values() if p.ndim > 1]
        plain = [p for p in self._trained.values() if p.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=recipe.learning_rate,
        )
        self._multiplied = {
            f"{name}.{own}"
            for name, module in self._network.named_modules()
            if isinstance(module, _MULTIPLIES)
            for own, _ in module.named_parameters(recurse=False)
        }
        self._average = self._copy_of_state()
        self._step = 0
        self._seconds = 0.0
        self._rate = 0.0
        self._is_new_log = True  # a resumed run goes on with its own

    def steps(self) -> Iterator[Report]:
        started, before = time.monotonic(), self._seconds
        saved = reported = started
        losses: list[float] = []
        self._network.train()
        while self._seconds < self._minutes * 60:
            losses.append(self._one_step())
            now = time.monotonic()
            self._seconds = before + now - started
            if now - saved > CHECKPOINT_EVERY_S:
                saved = now
                self._save_checkpoint()
                yield self._report(losses, self.watch())
                losses = []
            elif now - reported > REPORT_EVERY_S:
                reported = now
                yield self._report(losses, None)
                losses = []
        self._save_checkpoint()
        yield self._report(losses, self.watch())

    def finish(self, folders: Sequence[Path]) -> None:
        facts = {
            "recipe": self._recipe.name,
            "seed": str(self._recipe.seed),
            "steps": str(self._step),
            "minutes": f"{self._seconds / 60:.1f}",
            "device": self._device,
            "data": ", ".join(f"{folder.resolve().parent.name}/{folder.name}" for folder in folders),
            "phases": json.dumps([asdict(phase) for phase in self._recipe.phases]),
        }
        if self._earlier:
            facts["started_from"] = json.dumps(self._earlier)
        rounded = self._as_seen()
        rounded |= {name: rounded[name].bfloat16() for name in self._multiplied & rounded.keys()}  # half the bytes
        save_file({name: value.contiguous() for name, value in rounded.items()}, self._out, metadata=facts)

    def start_from(self, path: Path) -> None:
        self._load_part(self._network, path)
        self._average = self._copy_of_state()

    def start_from_denoiser(self, spec: DenoiserSpec, weights_dir: Path) -> None:
        """Begin with a denoiser's finished weights, all parts of them."""
        parts = WIRINGS[self._recipe.network].parts
        for name in spec.weights:
            part = self._network.get_submodule(parts[name]) if name in parts else self._network
            self._load_part(part, weights_dir / f"{name}.safetensors")
        self._average = self._copy_of_state()

    def compile(self, backend: str = "inductor") -> None:
        """Let torch compile the network, and its parts for objectives that call those by themselves.

        Args:
            backend: of torch.compile.
        """
        for module in (self._network, *self._network.children()):
            module.compile(backend=backend)

    def as_it_is(self) -> Callable[[Tensor, Tensor], Tensor]:
        """What restores frames with a copy of the network, which later steps leave alone."""
        network = copy.deepcopy(self._network).eval().requires_grad_(False)

        def restore(noisy: Tensor, sigma: Tensor) -> Tensor:
            with torch.no_grad(), torch.autocast(self._device.split(":")[0], torch.bfloat16):
                return self._recipe.restore(network, noisy, sigma).float()

        return restore

    def resume(self) -> None:
        path = self._checkpoint_path()
        if not path.exists():
            raise FileNotFoundError(f"there is no checkpoint {path} to resume from")
        with safe_open(path, framework="pt", device=self._device) as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        self._step, self._seconds = int(metadata["step"]), float(metadata["seconds"])
        self._earlier = json.loads(metadata["started_from"])
        self._is_new_log = False
        self._network.load_state_dict(_under(tensors, "network"), strict=False)
        self._average = _under(tensors, "average")
        for name, parameter in self._trained.items():
            if f"first_moment.{name}" not in tensors:
                continue
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(self._step)),
                "exp_avg": tensors[f"first_moment.{name}"],
                "exp_avg_sq": tensors[f"second_moment.{name}"],
            }

    def _one_step(self) -> float:
        recipe = self._recipe
        rng = np.random.default_rng([recipe.seed, self._step])
        progress = min(1.0, self._seconds / (self._minutes * 60))
        phase = [phase for phase in recipe.phases if phase.start <= progress][-1]
        noisy, sigma, clean = self._source.draw(rng, phase)
        torch.manual_seed(int(rng.integers(2**62)))  # an objective may draw too
        rate = recipe.learning_rate * min(1.0, (self._step + 1) / recipe.warmup_steps)
        rate *= 0.5 * (1 + math.cos(math.pi * progress)) * 0.998 + 0.002
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self._device.split(":")[0], torch.bfloat16):
            loss = recipe.objective(self._network, noisy, sigma, clean, progress)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._trained.values(), recipe.gradient_clip)
        if bool(torch.isfinite(norm)):
            self._optimizer.step()
        self._step += 1
        decay = min(recipe.ema_decay, (1 + self._step) / (10 + self._step))
        with torch.no_grad():
            for name, value in self._state().items():
                if value.is_floating_point():
                    self._average[name].lerp_(value.detach(), 1 - decay)
                else:
                    self._average[name].copy_(value)
        self._rate = rate
        return float(loss.detach())

    def watch(self) -> dict[str, float]:
        """What the source tells of the averaged weights."""
        trained = self._copy_of_state()
        self._load(self._as_seen())
        self._network.eval()
        with torch.no_grad():
            psnrs = self._source.watch(self._restore)
        self._load(trained)
        self._network.train()
        return psnrs

    def _restore(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """One example after the other, for memory; the middle frames, on the CPU, clipped."""
        restore, device = self._recipe.restore, self._device
        one_by_one = zip(noisy[:, None], sigma[:, None], strict=True)
        restored = [restore(self._network, one.to(device), level.to(device)) for one, level in one_by_one]
        return torch.cat(restored).float().cpu().clamp(0, 1)

    def _report(self, losses: list[float], psnr_db: dict[str, float] | None) -> Report:
        loss = sum(losses) / len(losses) if losses else math.nan
        report = Report(self._step, self._seconds / 60, self._rate, loss, psnr_db)
        path = self._out.with_suffix(".csv")
        new = self._is_new_log or not path.exists()
        self._is_new_log = False
        with path.open("w" if new else "a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(
                    ["step", "minutes", "learning_rate", "loss", *(f"psnr_{name}" for name in self._source.watched)]
                )
            watched = [f"{psnr_db[name]:.3f}" for name in self._source.watched] if psnr_db else []
            writer.writerow(
                [report.step, f"{report.minutes:.2f}", f"{report.learning_rate:.2e}", f"{loss:.5f}", *watched]
            )
        return report

    def _state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self._network.state_dict(keep_vars=True)
        return {name: value for name, value in state.items() if name.split(".")[0] not in self._recipe.frozen}

    def _as_seen(self) -> dict[str, Tensor]:
        """The averaged weights, those in bfloat16 that a step multiplies by in bfloat16.

        What lies between two such numbers has no bearing on the loss, but the optimizer leaves it to one side: after
        three hours `fitvnet-spatial.camera` made pictures darker by 0.7 of 255 as it was, by 0.07 rounded.
        """
        return {
            name: value.bfloat16().to(value.dtype) if name in self._multiplied else value
            for name, value in self._average.items()
        }

    def _copy_of_state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._state().items()}

    def _load_part(self, part: nn.Module, path: Path) -> None:
        """Fill a part of the network with finished weights; those that the file does not hold stay as they are."""
        with safe_open(path, framework="pt", device=self._device) as file:
            self._earlier[path.stem] = file.metadata() or {}
        try:
            unknown = part.load_state_dict(load_file(path, device=self._device), strict=False).unexpected_keys
        except RuntimeError as err:
            raise ValueError(f"{path.name} does not fit the network: {err}") from err
        if unknown:
            raise ValueError(f"{path.name} does not fit the network: it has no {unknown[0]}")

    def _grow(self, path: Path) -> None:
        with safe_open(path, framework="pt", device=self._device) as file:
            self._earlier[path.stem] = file.metadata() or {}
        try:
            earlier = {name: value.float() for name, value in load_file(path, device=self._device).items()}
            cast("Growing", self._network).begin_as(earlier)
        except ValueError as err:
            raise ValueError(f"{path.name} does not fit the network: {err}") from err

    def _load(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._state().items():
                value.copy_(values[name])

    def _save_checkpoint(self) -> None:
        tensors = {f"network.{name}": value.detach().contiguous() for name, value in self._state().items()}
        tensors |= {f"average.{name}": value.contiguous() for name, value in self._average.items()}
        for name, parameter in self._trained.items():
            state = self._optimizer.state.get(parameter)
            if state:  # not before the first step that counted
                tensors[f"first_moment.{name}"] = state["exp_avg"].contiguous()
                tensors[f"second_moment.{name}"] = state["exp_avg_sq"].contiguous()
        path = self._checkpoint_path()
        unfinished = path.with_suffix(".part")
        facts = {"step": str(self._step), "seconds": str(self._seconds), "started_from": json.dumps(self._earlier)}
        save_file(tensors, unfinished, metadata=facts)
        unfinished.replace(path)

    def _checkpoint_path(self) -> Path:
        return self._out.with_suffix(".checkpoint.safetensors")


def _psnr_db(restored: Tensor, clean: Tensor) -> float:
    error = (restored - middle_of(clean, restored.shape[1])).square()
    return float(-10 * error.mean((-3, -2, -1)).log10().mean())


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}

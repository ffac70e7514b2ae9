"""Where clean crops and clips come from: photographs, footage, and motion made up over photographs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models.training.noise import light_of

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
REDUCTIONS = (1.0, 0.7)  # reduced copies are sharper than the photograph and hide its own noise
SMALLEST_SIDE_PX = 160
LEAST_FOOTAGE = 7  # a folder with fewer frames, or with frames of several sizes, is a folder of photographs
VALIDATION_EVERY = 40  # every 40th photograph is kept out of training, to watch the run by
PAIR_VALIDATION_EVERY = 12
CLIP_VALIDATION_EVERY = 6
NOISE_SHARES = 0.6, 1.6  # of a pair's noise that it is shown with
NOISY_MARK, CLEAN_MARK = "_real", "_mean"  # in the names of photographs of one scene, taken noisy and averaged of many


@dataclass(frozen=True, slots=True)
class Material:
    """Clean pictures in memory: photographs [H, W, 3] and clips [T, H, W, 3], all uint8 RGB."""

    photographs: tuple[np.ndarray, ...]
    clips: tuple[np.ndarray, ...]
    held_out: tuple[np.ndarray, ...]
    pairs: tuple[tuple[np.ndarray, np.ndarray], ...] = ()  # taken noisy, and clean
    held_out_pairs: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    held_out_clips: tuple[np.ndarray, ...] = ()

    def crops(self, rng: np.random.Generator, count: int, size_px: int) -> Tensor:
        """Random crops of photographs and frames, flipped and turned: [count, 1, 3, size, size] in [0, 1]."""
        picked = [_turned(rng, _crop(rng, self._any_picture(rng), size_px)) for _ in range(count)]
        return _as_planes(np.stack(picked)[:, None])

    def pair_crops(self, rng: np.random.Generator, count: int, size_px: int) -> tuple[Tensor, Tensor]:
        """Random crops of real pairs, noisy and clean, turned alike: each [count, 1, 3, size, size] in [0, 1]."""
        picked = []
        for _ in range(count):
            noisy, clean = self.pairs[rng.integers(len(self.pairs))]
            picked.append(_turned(rng, _crop(rng, np.concatenate([noisy, clean], 2), size_px)))
        both = _as_planes(np.stack(picked)[..., :3]), _as_planes(np.stack(picked)[..., 3:])
        return both[0][:, None], both[1][:, None]

    def varied_pair_crops(self, rng: np.random.Generator, count: int, size_px: int) -> tuple[Tensor, Tensor]:
        """Likewise, the noise stronger or weaker and the colours exchanged.

        Each pair has one noise, and there are few: seen as they are, networks learn them by heart within minutes.
        """
        noisy, clean = self.pair_crops(rng, count, size_px)
        for index in range(count):
            colours = torch.from_numpy(rng.permutation(3))
            clean[index] = clean[index][:, colours]
            taken = noisy[index][:, colours] - clean[index]
            noisy[index] = (clean[index] + rng.uniform(*NOISE_SHARES) * taken).clamp(0, 1)
        return noisy, clean

    def clip_crops(
        self, rng: np.random.Generator, count: int, frames: int, size_px: int, footage_share: float
    ) -> Tensor:
        """Random short clips, of real footage or with made-up motion: [count, frames, 3, size, size] in [0, 1]."""
        clips = []
        for _ in range(count):
            if self.clips and rng.random() < footage_share:
                clips.append(self._footage(rng, frames, size_px))
            else:
                clips.append(self._made_up_motion(rng, frames, size_px))
        return torch.stack(clips)

    def _any_picture(self, rng: np.random.Generator) -> np.ndarray:
        return self.photographs[rng.integers(len(self.photographs))]

    def _footage(self, rng: np.random.Generator, frames: int, size_px: int) -> Tensor:
        clip = self.clips[rng.integers(len(self.clips))]
        first = rng.integers(len(clip) - frames + 1)
        run = clip[first : first + frames]
        if rng.random() < 0.5:
            run = run[::-1]
        # Cropped as one tall stack of planes, so that every frame is cut and turned alike.
        stacked = run.transpose(1, 2, 0, 3).reshape(*run.shape[1:3], -1)
        stacked = _turned(rng, _crop(rng, stacked, size_px))
        planes = stacked.reshape(size_px, size_px, frames, 3).transpose(2, 0, 1, 3)
        return _as_planes(planes)

    def _made_up_motion(self, rng: np.random.Generator, frames: int, size_px: int) -> Tensor:
        """A photograph panned, zoomed and turned; half the time with a cut-out of another moving over it."""
        clip = self._moved(rng, frames, size_px)
        if rng.random() < 0.5:
            front = self._moved(rng, frames, size_px)
            mask = _moving_blob(rng, frames, size_px)
            clip = front * mask + clip * (1 - mask)
        return clip

    def _moved(self, rng: np.random.Generator, frames: int, size_px: int) -> Tensor:
        picture = self._any_picture(rng)
        margin = min(48, (min(picture.shape[:2]) - size_px) // 2)
        around = _turned(rng, _crop(rng, picture, size_px + 2 * margin))
        source = _as_planes(around[None])
        time = torch.linspace(-1, 1, frames)
        # Log-uniform, from standing still to as fast as the margin allows: most footage moves little most of the time,
        # and it is there that a network first finds out what neighbours are good for.
        pace = 10 ** rng.uniform(-2.2, 0)
        if rng.random() < 0.35:  # whole-pixel pans keep the grain of the picture; interpolation softens it
            reach = margin / max(1, (frames - 1) / 2)
            speed = rng.uniform(-reach, reach, 2) * pace
            steps = np.arange(frames) - (frames - 1) / 2
            shifts = np.clip(np.rint(speed * steps[:, None]).astype(int), -margin, margin) + margin
            return torch.stack([source[0, :, y : y + size_px, x : x + size_px] for y, x in shifts])
        angle = time * rng.normal(0, 0.08) * pace
        zoom = torch.exp(time * rng.normal(0, 0.06) * pace)
        wide = size_px + 2 * margin
        fit = size_px / wide
        slack = max(0.0, 1 - 1.25 * fit)
        pan_y, pan_x = (torch.tensor(rng.uniform(-slack, slack) * pace) * time for _ in range(2))
        cos, sin = torch.cos(angle) * fit / zoom, torch.sin(angle) * fit / zoom
        affine = torch.stack([torch.stack([cos, -sin, pan_x], 1), torch.stack([sin, cos, pan_y], 1)], 1)
        grid = F.affine_grid(affine.float(), [frames, 3, size_px, size_px], align_corners=False)
        moved = F.grid_sample(
            source.expand(frames, -1, -1, -1), grid, mode="bicubic", padding_mode="reflection", align_corners=False
        )
        return moved.clamp(0, 1)


def read_material(folders: Sequence[Path], *, with_clips: bool, smallest_px: int = SMALLEST_SIDE_PX) -> Material:
    """Read every picture under the folders; a folder of equally sized numbered frames is also a clip.

    Two pictures whose names differ in `_real` and `_mean` are a pair, and not among the photographs.

    Raises:
        FileNotFoundError: a folder is not there or holds no picture.
    """
    photographs: list[np.ndarray] = []
    clips: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    held_out_pairs: list[tuple[np.ndarray, np.ndarray]] = []
    held_out_clips: list[np.ndarray] = []
    seen = 0
    for folder in folders:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise FileNotFoundError(f"no pictures under {folder}")
        taken_twice = [path for path in paths if NOISY_MARK in path.stem and _clean_of(path).is_file()]
        for index, path in enumerate(taken_twice):
            clean = _read(_clean_of(path))
            pair = _as_bright(_read(path), clean), clean
            is_held_out = index % PAIR_VALIDATION_EVERY == PAIR_VALIDATION_EVERY // 2
            (held_out_pairs if is_held_out else pairs).append(pair)
        in_pairs = {*taken_twice, *map(_clean_of, taken_twice)}
        paths = [path for path in paths if path not in in_pairs]
        for home in sorted({path.parent for path in paths}):
            pictures = [_read(path) for path in paths if path.parent == home]
            if _is_footage([path for path in paths if path.parent == home], pictures):
                seen += 1
                is_held_out = seen % CLIP_VALIDATION_EVERY == CLIP_VALIDATION_EVERY // 2
                if with_clips:
                    (held_out_clips if is_held_out else clips).append(np.stack(pictures))
                if is_held_out:
                    continue  # not among the photographs either
                pictures = pictures[::6]  # neighbours are alike
            for index, picture in enumerate(pictures):
                if index % VALIDATION_EVERY == VALIDATION_EVERY // 2 and min(picture.shape[:2]) >= smallest_px:
                    held_out.append(picture)
                else:
                    photographs += _with_reductions(picture, smallest_px)
    if not photographs:
        raise FileNotFoundError(f"no picture of at least {smallest_px} pixels a side under {folders}")
    # Too few pictures to keep any out: the run is watched by one that it learns from.
    return Material(
        tuple(photographs),
        tuple(clips),
        tuple(held_out or photographs[:1]),
        tuple(pairs),
        tuple(held_out_pairs or pairs[:1]),
        tuple(held_out_clips),
    )


def _clean_of(noisy: Path) -> Path:
    return noisy.with_name(noisy.name.replace(NOISY_MARK, CLEAN_MARK))


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _as_bright(noisy: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """The noisy shot, lit as the clean one.

    Lamps flicker and exposures differ from shot to shot: of what is left in PolyU's pictures after denoising, half is
    such a difference. No network can know it, and it would drown what there is to learn.
    """
    apart = torch.from_numpy(noisy.astype(np.float32) - clean).permute(2, 0, 1)[None, None]
    light = light_of(apart)[0, 0].permute(1, 2, 0).numpy()
    lit: np.ndarray = np.rint(noisy - light).clip(0, 255).astype(np.uint8)
    return lit


def _is_footage(paths: Sequence[Path], pictures: Sequence[np.ndarray]) -> bool:
    numbered = all(path.stem.isdigit() for path in paths)
    return numbered and len(pictures) >= LEAST_FOOTAGE and len({picture.shape for picture in pictures}) == 1


def _with_reductions(picture: np.ndarray, smallest_px: int) -> list[np.ndarray]:
    height, width = picture.shape[:2]
    image = Image.fromarray(picture)
    copies = []
    for scale in REDUCTIONS:
        size = (round(width * scale), round(height * scale))
        if min(size) >= smallest_px:
            copies.append(picture if scale == 1 else np.asarray(image.resize(size, Image.Resampling.LANCZOS)))
    return copies


def _crop(rng: np.random.Generator, picture: np.ndarray, size_px: int) -> np.ndarray:
    height, width = picture.shape[:2]
    top, left = rng.integers(height - size_px + 1), rng.integers(width - size_px + 1)
    return picture[top : top + size_px, left : left + size_px]


def _turned(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    return np.rot90(picture, int(rng.integers(4)))


def _moving_blob(rng: np.random.Generator, frames: int, size_px: int) -> Tensor:
    """A soft-edged ellipse on a straight path: [frames, 1, size, size] in [0, 1]."""
    axis = torch.linspace(-1, 1, size_px)
    time = torch.arange(frames) - (frames - 1) / 2
    centre = torch.tensor(rng.uniform(-0.6, 0.6, 2)) + time[:, None] * torch.tensor(rng.normal(0, 0.12, 2))
    radius = torch.tensor(rng.uniform(0.25, 0.8, 2))
    down = (axis[None, :, None] - centre[:, 0, None, None]) / radius[0]
    across = (axis[None, None, :] - centre[:, 1, None, None]) / radius[1]
    edge_px = 1.5
    distance = (1 - (down**2 + across**2).sqrt()) * radius.mean() * size_px / 2 / edge_px
    return torch.sigmoid(4 * distance)[:, None].float()


def _as_planes(pixels: np.ndarray) -> Tensor:
    """[..., H, W, 3] uint8 to [..., 3, H, W] float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, -3))).float().div_(255)

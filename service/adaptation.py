"""How does somebody's noisy footage become a denoiser with a name of its own?

Frames are read, their noise is found, finished weights are adapted to it, exported, and put into the models directory,
where the command line, the API and the workers find them by name.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.catalogue import DESCRIBED
from models.errors import NeedsExtra
from models.own import Adaptation, Library, OwnDenoiser, sha256_of
from models.weights import cut_into_stages, load_network
from service.errors import BadInput
from service.media.sniff import HEAD_BYTES, content_type_of
from service.media.video import VideoReader
from service.pipeline.shelf import Shelf
from service.settings import Settings

NEEDED = ("torch", "safetensors", "onnx", "onnxscript")
LEAST_SIGMA = 1.5 / 255  # weaker noise is hardly told from texture
MOST_BLOTCH = 1.6  # white noise of level 5 over detailed footage was found to have as much
MOST_CUT = 0.25  # of all values
_UNFINISHED = ".unfinished"  # a folder: what is trained in it has no name yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be adapted, to what, and how it is to be called."""

    recipe: str
    data: Sequence[Path]  # folders of frames, of clips, or video files
    name: str
    minutes: float
    replaces: bool = False  # an adapted denoiser of this name, if there is one
    resume: bool = False
    start_from: Path | None = None
    device: str = "cpu"
    threads: int = 1


def adapt_to_footage(wish: Wish, settings: Settings, tell: Callable[[str], None]) -> OwnDenoiser:
    """Adapt a denoiser, and make it known by its name.

    Args:
        wish: what is wanted.
        settings: say where the models directory is, and how large a video may be.
        tell: is told how it goes, a line at a time.

    Raises:
        NeedsExtra: a package is missing.
        NameTaken: the name cannot be had.
        BadInput: the recipe cannot be adapted, or the footage will not do.
        FileNotFoundError: there is no such footage, no checkpoint to resume from, or no weights to begin with.
    """
    for package in NEEDED:
        if find_spec(package) is None:
            raise NeedsExtra(f"adapting needs {package}, which is not installed: pip install 'quietframe[torch]'")
    from models.training.noise_fit import fit_noise
    from models.training.recipes import RECIPES
    from models.training.trainer import Report
    from models.training.unsupervised import ESTIMATE, Recorruption, adapt

    library = Library(settings.own_models_dir)
    library.check_new_name(wish.name, replaces=wish.replaces)
    recipe = RECIPES[wish.recipe].unsupervised if wish.recipe in RECIPES else None
    if recipe is None:
        able = [name for name, one in RECIPES.items() if one.unsupervised]
        raise BadInput(f"{wish.recipe!r} cannot be adapted to noisy footage; {', '.join(able)} can")

    unfinished = library.folder / _UNFINISHED / f"{wish.name}.safetensors"
    unfinished.parent.mkdir(parents=True, exist_ok=True)

    def on_report(report: Report) -> None:
        estimate = "" if report.psnr_db is None else f"  held-out frames: {_decibels(report.psnr_db[ESTIMATE])}"
        tell(f"{report.minutes:.1f} of {wish.minutes:g} min  step {report.step}  loss {report.loss:.4f}{estimate}")

    try:
        clips = read_footage(wish.data, settings)
        tell(f"read {sum(map(len, clips))} frames in {len(clips)} clips")
        noise = fit_noise(clips)
        dark, light = noise.sigma_at(0.0), noise.sigma_at(1.0)
        tell(f"found noise of level {255 * dark:.1f} at black to {255 * light:.1f} at white (8-bit scale)")
        for warning in _warnings(max(dark, light), noise.blotch, Recorruption(noise).cut_share(clips)):
            tell(f"warning: {warning}")
        made = adapt(
            recipe,
            clips,
            unfinished,
            minutes=wish.minutes,
            noise=noise,
            resume=wish.resume,
            start_from=wish.start_from,
            device=wish.device,
            threads=wish.threads,
            sources=wish.data,
            on_start=lambda before: tell(f"held-out frames before: {_decibels(before)}"),
            on_report=on_report,
        )
    except ValueError as err:  # of the networks' room, which knows no input that is bad
        raise BadInput(str(err)) from err
    tell(f"held-out frames: {_decibels(made.before_db)} before, {_decibels(made.after_db)} after; exporting")
    if made.after_db < made.before_db:
        tell(f"warning: by this estimate {recipe.network} was better as it was; compare the two before you use it")
    adaptation = Adaptation(
        recipe=recipe.name,
        data=", ".join(path.name for path in wish.data),
        minutes=round(made.minutes, 1),
        steps=made.steps,
        seed=recipe.seed,
        device=wish.device,
        sigma_dark=dark,
        sigma_light=light,
        blotch=noise.blotch,
        estimate_before_db=_or_none(made.before_db),
        estimate_after_db=_or_none(made.after_db),
    )
    own = _put(unfinished, wish.name, recipe.network, adaptation, library)
    Shelf(settings).denoiser(own.name)  # what does not load here should be told here
    return own


def read_footage(paths: Sequence[Path], settings: Settings) -> list[NDArray[np.uint8]]:
    """Clips out of folders of frames and video files, as much of them as there is room for.

    Raises:
        FileNotFoundError: a path is not there, or holds neither.
        BadInput: a file cannot be decoded.
        ValueError: the frames of a folder are of several sizes.
    """
    from models.training.footage import MOST_BYTES, frame_folders, read_frames

    folders: list[Path] = []
    videos: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = frame_folders(path), _videos_under(path)
            if not any(found):
                raise FileNotFoundError(f"there are no pictures and no videos under {path}")
            folders += found[0]
            videos += found[1]
        elif _is_video(path):  # which raises where there is none
            videos.append(path)
        else:
            raise BadInput(f"{path} is neither a folder nor a video that is read here")
    share = MOST_BYTES // (len(folders) + len(videos))
    clips = [clip for folder in folders for clip in read_frames(folder, share)]
    return clips + [clip for video in videos for clip in _read_video(video, share, settings)]


def _read_video(path: Path, most_bytes: int, settings: Settings) -> list[NDArray[np.uint8]]:
    from models.training.footage import spread_runs

    with VideoReader(path, settings) as reader:
        facts = reader.facts
        most = max(1, most_bytes // (facts.width * facts.height * 3))
        runs = spread_runs(facts.frames or most, most)
        wanted = {index: number for number, run in enumerate(runs) for index in run}
        taken: list[list[NDArray[np.uint8]]] = [[] for _ in runs]
        for index, frame in enumerate(reader):
            if index > runs[-1][-1]:
                break
            if index in wanted:
                pixels = frame.pixels
                taken[wanted[index]].append(pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8))
    return [np.stack(frames) for frames in taken if frames]


def _videos_under(folder: Path) -> list[Path]:
    from models.training.material import IMAGE_SUFFIXES

    others = (one for one in sorted(folder.rglob("*")) if one.suffix.lower() not in IMAGE_SUFFIXES and one.is_file())
    return [one for one in others if _is_video(one)]


def _is_video(path: Path) -> bool:
    with path.open("rb") as file:
        content_type = content_type_of(file.read(HEAD_BYTES))
    return content_type is not None and content_type.startswith("video/")


def _put(weights: Path, name: str, base_name: str, adaptation: Adaptation, library: Library) -> OwnDenoiser:
    """Move finished weights to where they are looked for, export their graphs beside them, and write them down."""
    from trtbuild.export import export_stage

    base, folder = DESCRIBED[base_name], library.folder
    own = OwnDenoiser(
        name=name,
        base=base_name,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        weights_sha256=sha256_of(weights),
        graphs_sha256={},
        adaptation=adaptation,
    )
    spec = own.spec_in(folder)
    weights.replace(folder / f"{own.version}.safetensors")
    modules = cut_into_stages(spec, load_network(spec, folder))
    graphs = {}
    for stage, of_base in zip(spec.stages, base.stages, strict=True):
        path = folder / f"{stage.name}.onnx"
        part = path.with_suffix(".part")
        part.write_bytes(export_stage(spec, stage, modules[stage.name]))
        part.replace(path)
        graphs[of_base.name] = sha256_of(path)
    own = replace(own, graphs_sha256=graphs)
    library.add(own)
    weights.with_suffix(".csv").replace(folder / f"{name}.csv")
    weights.with_suffix(".checkpoint.safetensors").unlink(missing_ok=True)
    with suppress(OSError):  # another is being trained beside it
        weights.parent.rmdir()
    return own


def _warnings(sigma: float, blotch: float, cut_share: float) -> list[str]:
    told = []
    if sigma < LEAST_SIGMA:
        told.append(f"hardly any noise was found (level {255 * sigma:.1f}); there is little to learn from")
    if blotch > MOST_BLOTCH:
        told.append(
            f"the noise is blotchy, or there is hardly any: at twice the scale it is {blotch:.1f} times as strong as "
            "independent pixels would give. Compressed or processed footage keeps most of such noise"
        )
    if cut_share > MOST_CUT:
        told.append(
            f"{cut_share:.0%} of the footage is so light or so dark that the range cuts its noise; there nothing is "
            "learned, and the model stays as it was"
        )
    return told


def _decibels(estimate: float) -> str:
    return "PSNR cannot be estimated" if math.isnan(estimate) else f"PSNR about {estimate:.2f} dB (estimated)"


def _or_none(estimate: float) -> float | None:
    return None if math.isnan(estimate) else round(estimate, 2)

"""How FITVNet is taught: Wang, Zhou, Cheng 2020, equations (7) to (11).

The shipped weights come of `fitvnet-spatial` and, behind it, `fitvnet`. The paper's own variants (section 3.2, Table 4)
are trained end to end from fresh weights, as section 4.1 has it, and differ in their objective alone: `fitvnet-base`,
`fitvnet-jsn`, `fitvnet-jsc`, `fitvnet-unsupervised`; `fitvnet-mixed` is jsc on the noise of Table 1.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from models.networks.fitvnet import FITVNet
from models.networks.sampling import warped
from models.networks.unet import SmallVideoUNet
from models.training.noise import Camera, Compressed, Either, Gaussian, Mixed, Noise, Subsampled, per_example
from models.training.recipe import (
    BLIND_GAUSSIAN,
    GAUSSIAN_LEVELS,
    Phase,
    Recipe,
    l2_norm,
    l2_norm_of_known,
    middle_of,
    restore_image,
    supervised,
)

EPOCHS = 40  # section 4.1; they are spread over the run
ENLARGED_ALPHA = 10.0
FILMED = Compressed(Either(((Camera(), 0.4), (Gaussian((0.0, 40 / 255), recorded_share=1.0), 0.6))))
IN_FILES = Either(((Camera(), 0.3), (Subsampled(BLIND_GAUSSIAN), 0.25), (FILMED, 0.2), (BLIND_GAUSSIAN, 0.25)))
IN_FILES_WATCHED: dict[str, Noise] = {
    "camera": Camera(),
    "subsampled": Subsampled(Gaussian((25 / 255, 25 / 255))),
    "compressed": Compressed(Gaussian((20 / 255, 20 / 255), recorded_share=1.0), crf=(24.0, 24.0)),
    "25": GAUSSIAN_LEVELS["25"],
    "50": GAUSSIAN_LEVELS["50"],
}
VIMEO_MIXED = Mixed(Gaussian((25.5 / 255, 25.5 / 255)), (0.1, 0.1))  # section 4.1


def restore_clip(network: nn.Module, noisy: Tensor, sigma: Tensor) -> Tensor:
    """Run the cascade over T frames, every stage once a frame; two blocks yield the middle T - 4, one T - 2."""
    return _cascade(network, noisy, sigma)[1]


def restore_aligned_clip(network: nn.Module, noisy: Tensor, sigma: Tensor) -> Tensor:
    """As `restore_clip`, each neighbour laid over the middle of its triplet, by the motion of the cleaned frames."""
    return _cascade(network, noisy, sigma, aligned=True)[1]


def joint_error(network: nn.Module, noisy: Tensor, sigma: Tensor, clean: Tensor, progress: float) -> Tensor:
    """Equation (10): the blocks' error, and the spatial module's in a share that falls as 1 / epochs.

    Alpha is 1; the paper's 40 epochs are spread over the run.
    """
    epochs = 1 + EPOCHS * progress
    frames, restored = _cascade(network, noisy, sigma)
    return l2_norm(frames, clean) / epochs + l2_norm(restored, middle_of(clean, restored.shape[1]))


def joint_error_noisy(network: nn.Module, noisy: Tensor, sigma: Tensor, clean: Tensor, progress: float) -> Tensor:
    """Equation (10) with (8) for (7), jsn: the spatial module against frames with other noise of the same level."""
    frames, restored = _cascade(network, noisy, sigma)
    share = 1 / (1 + EPOCHS * progress)
    return share * l2_norm(frames, _noisy_again(clean, sigma)) + l2_norm(restored, middle_of(clean, restored.shape[1]))


def unsupervised_error(network: nn.Module, noisy: Tensor, sigma: Tensor, clean: Tensor, progress: float) -> Tensor:
    """Equations (8), (10) and (11) where clean frames are there to make noisy targets of, and for nothing else."""
    return adapting_error(network, noisy, sigma, _noisy_again(clean, sigma), progress)


def adapting_error(network: nn.Module, noisy: Tensor, sigma: Tensor, target: Tensor, progress: float) -> Tensor:
    """Equations (8) and (11), joined by (10): the spatial module against noisy targets, the blocks against what the
    spatial module makes of the middle frame.

    That frame is among what the blocks read, so nothing is better than to hand it on. Let through to the spatial
    module, their error teaches it to blur, for blurred frames are the easiest to hand on: it is held back.
    """
    frames, restored = _cascade(network, noisy, sigma, apart=True)
    learned = middle_of(frames.detach().float(), restored.shape[1])
    return _enlarged_share(progress) * l2_norm_of_known(frames, target) + l2_norm(restored, learned)


def adapting_error_noisy(network: nn.Module, noisy: Tensor, sigma: Tensor, target: Tensor, progress: float) -> Tensor:
    """As `adapting_error`, but the blocks against noisy targets too, and on neighbours laid over the frame."""
    frames, restored = _cascade(network, noisy, sigma, aligned=True)
    spatial = _enlarged_share(progress) * l2_norm_of_known(frames, target)
    return spatial + l2_norm_of_known(restored, middle_of(target, restored.shape[1]))


def _enlarged_share(progress: float) -> float:
    """Alpha / e of equation (10). Section 3.4 enlarges alpha and does not say how far."""
    return ENLARGED_ALPHA / (1 + EPOCHS * progress)


def _noisy_again(clean: Tensor, sigma: Tensor) -> Tensor:
    """Targets of equation (8): noise of the same level, drawn anew. Neither clipped nor rounded, or its mean would not
    be the clean frame, and that is all that the equation rests on."""
    return clean + per_example(sigma) * torch.randn_like(clean)


def _cascade(
    network: nn.Module, noisy: Tensor, sigma: Tensor, *, apart: bool = False, aligned: bool = False
) -> tuple[Tensor, Tensor]:
    """[N, T, 3, H, W] noisy to what the spatial module makes of T frames, and two blocks of the middle T - 4.

    Where they are taught apart, what the blocks are told does not reach the spatial module. Where they are to be
    aligned, a frame's neighbours are laid over it before a block reads them; all blocks go by the same motion.
    """
    assert isinstance(network, FITVNet | SmallVideoUNet)
    spatial, *blocks = network.stages()
    count, length = noisy.shape[:2]
    frames: Tensor = spatial(noisy.flatten(0, 1), sigma).unflatten(0, (count, length))
    spatial_only = frames[:, :, :3]
    if apart:
        frames = frames.detach()
    motion = _motion(spatial_only) if aligned else None
    for stage in blocks:
        middles = range(1, frames.shape[1] - 1)
        if motion is None:
            triplets = torch.stack([frames[:, t - 1 : t + 2].flatten(1, 2) for t in middles], 1)
        else:
            skipped = (length - frames.shape[1]) // 2
            triplets = torch.stack(
                [
                    torch.cat(
                        [
                            warped(frames[:, t - 1], motion[:, t + skipped - 1, 0]),
                            frames[:, t],
                            warped(frames[:, t + 1], motion[:, t + skipped - 1, 1]),
                        ],
                        1,
                    )
                    for t in middles
                ],
                1,
            )
        frames = stage(triplets.flatten(0, 1), sigma).unflatten(0, (count, triplets.shape[1]))
    return spatial_only, frames


def _motion(frames: Tensor) -> Tensor:
    """[N, T, 3, H, W] cleaned to [N, T - 2, 2, 2, H, W]: from each but the outer ones to the one before and after."""
    from models.motion import flow_between  # OpenCV; the other recipes do without

    planes = frames.detach().float().cpu().numpy()
    found = [
        [[flow_between(clip[t], clip[t + step]) for step in (-1, 1)] for t in range(1, len(clip) - 1)]
        for clip in planes
    ]
    return torch.from_numpy(np.moveaxis(np.asarray(found, np.float32), -1, 3).copy()).to(frames.device)


ADAPTED_SPATIAL = Recipe(
    name="fitvnet-spatial-adapted",
    network="fitvnet-spatial",
    restore=restore_image,
    objective=supervised(restore_image, l2_norm_of_known),
    phases=(Phase(0.0, 64, 16),),
    learning_rate=2e-4,
    warmup_steps=20,
    gradient_clip=0.1,
    ema_decay=0.99,
    source="FITVNet equation (8) on recorrupted frames",
)

FITVNET_SPATIAL = Recipe(
    name="fitvnet-spatial",
    network="fitvnet-spatial",
    restore=restore_image,
    objective=supervised(restore_image, l2_norm),
    phases=(Phase(0.0, 64, 16), Phase(0.45, 96, 8), Phase(0.8, 128, 6)),
    unsupervised=ADAPTED_SPATIAL,
    source="FITVNet equation (7), clean targets (jsc)",
)

# To be started from the finished weights of `fitvnet-spatial`. Noise of cameras, of files with colours of half the
# resolution and of films, real pairs, and plain noise, grey or not.
FITVNET_SPATIAL_CAMERA = replace(
    FITVNET_SPATIAL,
    name="fitvnet-spatial.camera",
    network="fitvnet-spatial.camera",
    phases=(Phase(0.0, 96, 8), Phase(0.8, 128, 6)),
    noise=IN_FILES,
    watched=IN_FILES_WATCHED,
    grey_share=0.2,  # else grey pictures keep nearly all of their noise
    pair_share=0.2,
    learning_rate=4e-4,
    unsupervised=None,
)

# To be started from the finished weights of `fitvnet-spatial.camera`, which know grey pictures. Noise as that of
# Table 1, of all levels, up to half as much again struck.
FITVNET_SPATIAL_MIXED = replace(
    FITVNET_SPATIAL_CAMERA,
    name="fitvnet-spatial.mixed",
    network="fitvnet-spatial.mixed",
    noise=Mixed(BLIND_GAUSSIAN, (0.0, 0.15)),
    watched={"mixed": VIMEO_MIXED, "25": GAUSSIAN_LEVELS["25"], "50": GAUSSIAN_LEVELS["50"]},
    pair_share=0.0,
)

ADAPTED = Recipe(
    name="fitvnet-adapted",
    network="fitvnet",
    restore=restore_aligned_clip,
    objective=adapting_error_noisy,
    phases=(Phase(0.0, 64, 3),),
    frames=7,
    learning_rate=2e-4,
    warmup_steps=20,
    gradient_clip=0.1,
    ema_decay=0.99,
    source="FITVNet equations (8) and (10) on recorrupted frames; (9) on them too",
)

ADAPTED_AS_PAPER = replace(
    ADAPTED,
    name="fitvnet-adapted-11",
    network="fitvnet.plain",
    restore=restore_clip,
    objective=adapting_error,
    source="FITVNet equations (8), (10) and (11) on recorrupted frames",
)

FITVNET = Recipe(
    name="fitvnet",
    network="fitvnet",
    restore=restore_clip,
    objective=supervised(restore_clip, l2_norm),  # as at the end of equation (10), where the other term has decayed
    phases=(Phase(0.0, 64, 6), Phase(0.5, 96, 3)),
    frames=7,
    footage_share=0.4,
    learning_rate=4e-4,  # at 1e-3 the second block's last layers died after a thousand steps
    warmup_steps=200,
    gradient_clip=0.05,  # norms are 0.01 to 0.04; a spike is what kills
    starts_from={"spatial": "fitvnet-spatial"},
    frozen=("spatial",),  # so that image and video denoiser share it
    unsupervised=ADAPTED,
    source="FITVNet equation (9), after equation (7)",
)

# To be started from the finished weights of `fitvnet`. Motion is found by OpenCV and films are made by PyAV, which a
# bare GPU machine may lack.
FITVNET_CAMERA = replace(
    FITVNET,
    name="fitvnet.camera",
    network="fitvnet.camera",
    restore=restore_aligned_clip,
    objective=supervised(restore_aligned_clip, l2_norm),
    phases=(Phase(0.0, 96, 3), Phase(0.6, 128, 2)),
    learning_rate=2e-4,
    warmup_steps=50,
    footage_share=0.6,
    grey_share=0.2,
    noise=IN_FILES,
    watched=IN_FILES_WATCHED,
    starts_from={"spatial": "fitvnet-spatial.camera"},
    unsupervised=None,
    source="FITVNet equation (9), after equation (7), on neighbours laid over the frame",
)

FITVNET_JOINT = replace(  # gives one file, the spatial module in it
    FITVNET,
    name="fitvnet-joint",
    objective=joint_error,
    phases=(Phase(0.0, 96, 3), Phase(0.6, 128, 2)),
    gradient_clip=0.1,
    frozen=(),
    unsupervised=None,
    source="FITVNet equation (10), clean targets (jsc)",
)

FITVNET_JSC = replace(
    FITVNET,
    name="fitvnet-jsc",
    objective=joint_error,
    phases=(Phase(0.0, 64, 4), Phase(0.6, 96, 2)),
    gradient_clip=0.1,
    starts_from={},
    frozen=(),
    unsupervised=None,
    source="FITVNet equations (7), (9) and (10): jsc",
)
FITVNET_JSN = replace(
    FITVNET_JSC,
    name="fitvnet-jsn",
    objective=joint_error_noisy,
    source="FITVNet equations (8), (9) and (10): jsn",
)
FITVNET_MIXED = replace(
    FITVNET_JSC,
    name="fitvnet-mixed",
    noise=VIMEO_MIXED,
    watched={"mixed": VIMEO_MIXED, "25": GAUSSIAN_LEVELS["25"]},
    source="FITVNet equations (7), (9) and (10): jsc, on Vimeo-Mixed noise",
)
FITVNET_BASE = replace(
    FITVNET_JSC,
    name="fitvnet-base",
    objective=supervised(restore_clip, l2_norm),
    source="FITVNet equation (9): base",
)
FITVNET_UNSUPERVISED = replace(
    FITVNET_JSC,
    name="fitvnet-unsupervised",
    objective=unsupervised_error,
    unsupervised=ADAPTED_AS_PAPER,
    source="FITVNet equations (8), (10) and (11): unsupervised",
)

RECIPES = (
    FITVNET_SPATIAL,
    FITVNET_SPATIAL_CAMERA,
    FITVNET_SPATIAL_MIXED,
    FITVNET,
    FITVNET_CAMERA,
    FITVNET_JOINT,
    FITVNET_JSC,
    FITVNET_JSN,
    FITVNET_BASE,
    FITVNET_MIXED,
    FITVNET_UNSUPERVISED,
)

"""What is gained by restoring video in PQ along the curve of HLG? PSNR of both ways on the same codes.

Pictures become light, white at 203 nits (ITU-R BT.2408), get noise of variance `gain` q + `read`² as a sensor adds it,
and are kept in PQ of 10 bits. Once the network sees the codes, once what the service shows it. Compared is what is on
the screen: light on the sRGB curve, and light itself, 203 nits being 1.

    python benchmarks/hdr.py PICTURES [--model fitvnet-spatial.camera] [--count 6]
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.quality import psnr_db
from service.media.hdr_curve import PqCurve, codes_of, light_of
from service.media.light import decoded, encoded
from service.pipeline.denoiser import Denoiser, to_planes
from service.pipeline.shelf import Shelf
from service.settings import Settings

SIDE = 256
WHITE = 203.0
NOISE = ((0.0, 0.005), (0.002, 0.005), (0.01, 0.01), (0.03, 0.005))  # gain and read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--model", default="fitvnet-spatial.camera")
    parser.add_argument("--count", type=int, default=6)
    said = parser.parse_args()
    denoiser = Shelf(Settings()).denoiser(said.model)
    paths = sorted(path for path in said.pictures.iterdir() if path.suffix.lower() in {".png", ".jpg"})[: said.count]
    pictures = [np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.float32) / 255 for path in paths]
    pictures = [picture[:SIDE, :SIDE] for picture in pictures]
    print(f"{said.model}, {len(pictures)} pictures; PSNR, dB: noisy, seen as PQ, seen as HLG")
    print(f"{'gain':>6} {'read':>6}   {'on the sRGB curve':^20}   {'light':^20}")
    for gain, read in NOISE:
        rows = [measure(denoiser, picture, gain, read, seed) for seed, picture in enumerate(pictures)]
        means = np.mean(rows, 0)
        print(f"{gain:6g} {read:6g}   " + "   ".join(" ".join(f"{value:6.2f}" for value in half) for half in means))


def measure(denoiser: Denoiser, picture: NDArray[np.float32], gain: float, read: float, seed: int) -> list[list[float]]:
    random = np.random.default_rng(seed)
    light = decoded(picture)
    noisy_light = light + np.sqrt(gain * light + read**2) * random.standard_normal(light.shape)
    codes = np.rint(codes_of(WHITE * noisy_light) * 1023) / 1023
    pixels = np.rint(codes * 65535).astype(np.uint16)
    curve = PqCurve()
    noisy, seen = to_planes(pixels), to_planes(curve.seen(pixels))
    (as_pq,) = denoiser.restore_frames([noisy])
    (as_hlg,) = denoiser.restore_frames([seen])
    screens = [light_of(one.clip(0, 1)) / WHITE for one in (noisy, as_pq, curve.stored(as_hlg, seen, noisy))]
    clean = light.transpose(2, 0, 1)
    return [
        [psnr_db(shape(one.astype(np.float32)), shape(clean)) for one in screens]
        for shape in (lambda one: encoded(one.clip(0, 1)).transpose(1, 2, 0), lambda one: one.transpose(1, 2, 0))
    ]


if __name__ == "__main__":
    main()

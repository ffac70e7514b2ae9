"""What becomes of a job whose engine has not memory enough?"""

import threading

import numpy as np
import pytest

from models.catalogue import CATALOGUE, FITVNET
from service.pipeline.denoiser import Denoiser, Tally
from service.pipeline.turns import Turns, Urgency
from trtbuild.engine import OutOfDeviceMemory

SPATIAL = CATALOGUE["fitvnet-spatial"]


class SmallEngine:
    """Gives back half of what it gets, if it gets no more than it has room for."""

    backend, precision, contexts = "small", "fp16", 1

    def __init__(self, room_px: float, batch: int = 4, planes_out: int = 4) -> None:
        self._room_px, self.batch, self._planes_out = room_px, batch, planes_out
        self.shapes: list[tuple[int, ...]] = []

    def denoise(self, noisy, sigma):
        assert len(noisy) == len(sigma) <= self.batch
        if len(noisy) * noisy.shape[2] * noisy.shape[3] > self._room_px:
            raise OutOfDeviceMemory(f"no room for {noisy.shape}")
        self.shapes.append(noisy.shape)
        halved = noisy[:, :3] * np.float32(0.5)
        return np.concatenate([halved, halved[:, :1]], 1)[:, : self._planes_out]  # a plane for the next stage


class Spare(SmallEngine):
    backend, precision = "cpu", "fp32"


def denoiser_of(engine: SmallEngine, *, spare: SmallEngine | None = None) -> Denoiser:
    return Denoiser(SPATIAL, [engine], 512, open_spare=(lambda _: spare) if spare else None)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_tiles_go_through_an_engine_as_many_at_a_time_as_it_takes():
    noisy, engine = picture(900, 900), SmallEngine(float("inf"))
    restored = denoiser_of(engine).restore_picture(noisy)
    assert [shape[0] for shape in engine.shapes] == [4, 4, 1]
    assert np.abs(restored.astype(int) - noisy // 2).max() <= 1


def test_out_of_memory_means_fewer_tiles_at_a_time_then_smaller_ones():
    noisy, engine, tally = picture(900, 900), SmallEngine(300 * 300), Tally()
    restored = denoiser_of(engine).restore_picture(noisy, tally=tally)
    assert np.abs(restored.astype(int) - noisy // 2).max() <= 1
    assert tally.relief.notes == [
        "small ran out of memory: 2 tiles at a time instead of 4",
        "small ran out of memory: 1 tiles at a time instead of 2",
        "small ran out of memory: tiles of 256 pixels instead of 512",
    ]
    assert {shape[2] for shape in engine.shapes} == {256}
    assert (tally.backend, tally.precision) == ("small", "fp16")


def test_then_the_cpu_goes_on_and_both_are_told_to_have_run():
    noisy, engine, spare = picture(600, 600), SmallEngine(0), Spare(float("inf"), batch=1)
    tally = Tally(ran={("small", "fp16"): None})  # as if a first tile had gone well
    restored = denoiser_of(engine, spare=spare).restore_picture(noisy, tally=tally)
    assert np.abs(restored.astype(int) - noisy // 2).max() <= 1
    assert tally.relief.notes[-1] == "small ran out of memory: the CPU goes on"
    assert (tally.backend, tally.precision) == ("cpu+small", "fp16+fp32")


def test_without_a_spare_engine_the_error_is_told():
    with pytest.raises(OutOfDeviceMemory, match="no room"):
        denoiser_of(SmallEngine(0)).restore_picture(picture(64, 64))


def test_the_next_job_begins_with_all_of_the_device_again():
    engine = SmallEngine(300 * 300)
    denoiser = denoiser_of(engine)
    denoiser.restore_picture(picture(500, 500))
    engine._room_px = float("inf")
    engine.shapes.clear()
    denoiser.restore_picture(picture(500, 500))
    assert [shape[2] for shape in engine.shapes] == [500 + -500 % SPATIAL.multiple]


def test_a_clip_goes_on_with_smaller_tiles_from_the_frame_on_that_did_not_fit():
    rooms = (float("inf"), 300 * 300, 300 * 300)
    engines = [SmallEngine(room, 1, stage.planes_out) for room, stage in zip(rooms, FITVNET.stages, strict=True)]
    tally = Tally()
    denoiser = Denoiser(FITVNET, engines, 512)
    frames = [np.random.default_rng(n).random((3, 400, 400), np.float32) for n in range(6)]
    restored = list(denoiser.restore_frames(frames, tally=tally))
    assert len(restored) == 6
    for before, after in zip(frames, restored, strict=True):
        assert after.shape == before.shape
    assert tally.relief.notes == ["small ran out of memory: tiles of 208 pixels instead of 400"]


def test_engines_of_several_contexts_run_side_by_side_and_one_that_needs_to_be_alone_does_not():
    turns = Turns()
    inside = threading.Barrier(2)
    order: list[str] = []

    def pair() -> None:
        with turns.turn(Urgency.BATCH, 2):
            inside.wait(10)  # both are in at once, or this breaks
            order.append("pair")

    def alone() -> None:
        with turns.turn(Urgency.VIDEO):
            assert turns._running == [1]
            order.append("alone")

    with turns.turn(Urgency.BATCH):
        threads = [threading.Thread(target=work) for work in (alone, pair, pair)]
        for thread in threads:
            thread.start()
        while turns.waiting < 3:
            pass
    for thread in threads:
        thread.join()
    assert order == ["pair", "pair", "alone"]

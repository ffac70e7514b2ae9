"""Does the simulation of a fleet say what theory says, where theory has an answer, and keep count where it has none?"""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from fleet import Failures, Fleet, Images, Videos, erlang_c, mean_wait_s, percentile_s


def at_random(mean_s):
    return lambda rng: rng.expovariate(1 / mean_s)


def always(seconds):
    return lambda rng: seconds


@pytest.mark.parametrize(("workers", "load"), [(1, 0.6), (3, 0.7), (10, 0.8)])
def test_images_wait_as_erlang_says(workers, load):
    images = Images(rate=load * workers / 2, engine_s=at_random(2.0), count=100_000)
    told = Fleet(workers, images=images, image_slots=1, seed=1).run()
    waits = told.image_waits_s
    # 80 000 waits that are not independent: the mean of one run strays by some two percent.
    assert sum(waits) / len(waits) == pytest.approx(mean_wait_s(workers, images.rate, 2.0), rel=0.05)
    assert sum(wait > 0 for wait in waits) / len(waits) == pytest.approx(erlang_c(workers, load * workers), rel=0.03)
    assert told.busy == pytest.approx(load, rel=0.02)


def test_images_that_all_take_the_same_wait_half_as_long():
    """Pollaczek and Khinchine: load times service over twice what is left of the load."""
    told = Fleet(1, images=Images(rate=0.7, engine_s=always(1.0), count=60_000), image_slots=1, seed=1).run()
    assert sum(told.image_waits_s) / len(told.image_waits_s) == pytest.approx(0.7 / (2 * 0.3), rel=0.05)


def test_a_video_yields_to_images_as_theory_of_priorities_says_and_images_do_not_notice_it():
    images = Images(rate=0.4, engine_s=at_random(1.0), count=40_000)
    videos = Videos(rate=0.05, frames=10, part_frames=10, frame_s=0.5, count=5_000)
    told = Fleet(1, images=images, videos=videos, image_slots=1, seed=3).run()
    assert sum(told.image_waits_s) / len(told.image_waits_s) == pytest.approx(mean_wait_s(1, 0.4, 1.0), rel=0.05)
    # Of two classes, the first going before the second at once: 5 s of work stretched by the images' share, and the
    # work that is found there. 0.4 * 2 / 2 of images, 0.05 * 25 / 2 of videos.
    expected = 5 / 0.6 + (0.4 + 0.625) / (0.6 * 0.35)
    assert sum(told.video_took_s) / len(told.video_took_s) == pytest.approx(expected, rel=0.05)


def test_erlangs_formula_gives_the_values_of_his_tables():
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(10_000, 9_000.0) < 1e-9


def test_a_lone_video_is_done_faster_in_parts_until_they_are_too_small():
    def took(part_frames):
        videos = Videos(
            rate=1.0, frames=960, part_frames=part_frames, frame_s=0.1, part_s=2.0, plan_s=1.0, join_s=1.0, count=1
        )
        return Fleet(8, videos=videos, seed=1).run().video_took_s[0]

    assert took(960) == pytest.approx(1 + 2 + 96 + 1)
    assert took(120) == pytest.approx(1 + 2 + 12 + 1)  # one part for each of eight workers
    assert took(12) == pytest.approx(1 + 10 * (2 + 1.2) + 1)  # ten for each


def test_images_come_before_the_frames_of_a_video_which_goes_on_where_it_was():
    images = Images(rate=1.0, engine_s=always(3.0), count=1, gaps_s=[4.0])
    videos = Videos(rate=1e9, frames=10, part_frames=10, frame_s=1.0, count=1)
    told = Fleet(1, images=images, videos=videos, seed=1, warm_up=0.0).run()
    assert told.image_waits_s == [0.0]
    assert told.video_took_s == [pytest.approx(13.0)]


def test_workers_for_videos_alone_leave_images_to_the_others():
    images = Images(rate=1.0, engine_s=always(1.0), count=4, gaps_s=[0.0, 0.0, 0.0, 0.0])
    told = Fleet(3, images=images, video_workers=2, image_slots=1, seed=1, warm_up=0.0).run()
    assert told.image_waits_s == [0.0, 1.0, 2.0, 3.0]
    assert told.image_leases_s == [0.0, 1.0, 2.0, 3.0]


def test_a_second_slot_takes_an_image_early_and_the_image_waits_there():
    images = Images(rate=1.0, engine_s=always(2.0), count=2, gaps_s=[0.0, 0.5])
    told = Fleet(1, images=images, seed=1, warm_up=0.0).run()
    assert told.image_leases_s == [0.0, 0.0]
    assert told.image_waits_s == [0.0, 1.5]


def test_whatever_dies_every_job_is_done_or_given_up_and_never_both():
    images = Images(rate=1.5, engine_s=at_random(1.0), count=3_000)
    videos = Videos(rate=0.05, frames=12, part_frames=5, frame_s=0.5, plan_s=0.2, join_s=0.3, count=100)
    told = Fleet(4, images=images, videos=videos, failures=Failures(mean_s=30.0), seed=2).run()
    assert told.done + told.given_up == 3_100
    assert told.redelivered > 0
    assert told.given_up < 50
    assert told.megapixels <= 3_000 + 12 * 100


def test_a_job_that_every_worker_dies_of_is_given_up_after_its_attempts():
    images = Images(rate=1.0, engine_s=always(1e9), count=1)
    told = Fleet(2, images=images, failures=Failures(mean_s=100.0, attempts=3), seed=1).run()
    assert (told.done, told.given_up, told.redelivered) == (0, 1, 2)


def test_the_same_seed_gives_the_same_story():
    def story(seed):
        images = Images(rate=3.0, engine_s=at_random(1.0), count=500)
        return Fleet(4, images=images, failures=Failures(mean_s=50.0), seed=seed).run()

    assert story(5) == story(5)
    assert story(5) != story(6)


def test_idle_workers_are_paid_for():
    def hours(workers):
        return Fleet(workers, images=Images(rate=1.0, engine_s=always(0.5), count=4_000), seed=1).run().worker_hours

    assert hours(10) == pytest.approx(10 * hours(1), rel=0.01)
    assert hours(1) == pytest.approx(1000 / 3600, rel=0.05)  # a megapixel a second


def test_percentiles_are_values_that_were_seen():
    values = random.Random(1).sample(range(1, 101), 100)
    assert [percentile_s(values, percent) for percent in (1, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]
    assert percentile_s([], 95) == 0

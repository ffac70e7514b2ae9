"""Threads before and behind the network: bounded, in order, and never hanging when an end gives up."""

import threading

import pytest

from service.pipeline.relay import read_ahead, write_behind
from service.pipeline.turns import Turns, Urgency


def test_items_come_in_order_and_only_so_many_ahead():
    taken = []

    def items():
        for value in range(20):
            taken.append(value)
            yield value

    with read_ahead(items(), 3) as source:
        seen_ahead = [len(taken) - value for value in source]
    assert taken == list(range(20))
    assert max(seen_ahead) <= 5  # three waiting, one in the reader's hand, one in ours


def test_a_reader_s_error_reaches_who_takes_the_next_item():
    def items():
        yield 1
        raise OSError("the disk is gone")

    with read_ahead(items(), 2) as source:
        assert next(source) == 1
        with pytest.raises(OSError, match="the disk is gone"):
            next(source)


def test_leaving_early_ends_the_reader():
    def forever():
        while True:
            yield 0

    with read_ahead(forever(), 2) as source:
        next(source)
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_all_items_are_consumed_before_the_end():
    eaten = []
    with write_behind(eaten.append, 2) as put:
        for value in range(50):
            put(value)
    assert eaten == list(range(50))


def test_a_consumer_s_error_reaches_who_puts_and_stops_the_rest():
    def choke(value):
        if value == 3:
            raise OSError("the disk is full")

    def feed():
        with write_behind(choke, 1) as put:
            for value in range(1000):
                put(value)

    with pytest.raises(OSError, match="the disk is full"):
        feed()


def test_a_consumer_s_error_at_the_very_end_is_not_lost():
    def choke(value):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), write_behind(choke, 5) as put:
        put(1)


def test_who_waits_for_an_image_goes_before_who_waits_for_a_video():
    turns = Turns()
    order = []
    started = threading.Barrier(3)

    def want(urgency, label):
        started.wait()
        with turns.turn(urgency):
            order.append(label)

    with turns.turn(Urgency.BATCH):
        threads = [
            threading.Thread(target=want, args=(Urgency.VIDEO, "video")),
            threading.Thread(target=want, args=(Urgency.INTERACTIVE, "interactive")),
        ]
        for thread in threads:
            thread.start()
        started.wait()
        while turns.waiting < 2:
            pass
    for thread in threads:
        thread.join()
    assert order == ["interactive", "video"]


def test_an_error_in_a_turn_gives_the_engine_back():
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.turn(Urgency.BATCH):
        raise ZeroDivisionError
    with turns.turn(Urgency.BATCH):
        pass

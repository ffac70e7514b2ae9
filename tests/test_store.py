"""Does the store of built things give out only what was put in, whatever happens to its folder?"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from trtbuild.store import Key, LockBusy, Store, Tampered, UnsafeStore

ROOT = Path(__file__).parent.parent
A_PLAN = Key({"kind": "plan", "stage": "dncnn", "precision": "fp16", "profiles": ((1, 8), (16, 512))})
ANOTHER = Key({"kind": "plan", "stage": "dncnn", "precision": "fp32", "profiles": ((1, 8), (16, 512))})
A_DAY_S = 24 * 3600


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "engines"


@pytest.fixture
def store(folder) -> Store:
    return Store(folder)


def in_another_process(code: str, folder: Path) -> subprocess.Popen:
    lines = f"import sys, time\nfrom pathlib import Path\nsys.path.insert(0, {str(ROOT)!r})\n"
    lines += f"from trtbuild.store import *\nstore = Store(Path({str(folder)!r}))\n"
    return subprocess.Popen([sys.executable, "-c", lines + code], stdout=subprocess.PIPE, text=True)


def test_what_was_put_in_comes_out_with_its_facts(store, folder):
    assert store.read(A_PLAN) is None
    store.write(A_PLAN, b"a plan", {"psnr_db": 71.25, "log": ["built"]})
    assert store.read(A_PLAN) == (b"a plan", {"psnr_db": 71.25, "log": ["built"]})
    assert Store(folder).read(A_PLAN) == (b"a plan", {"psnr_db": 71.25, "log": ["built"]})  # and after a restart
    assert store.read(ANOTHER) is None


def test_a_record_may_have_no_payload(store):
    store.write(A_PLAN, b"", {"passed": True})
    assert store.read(A_PLAN) == (b"", {"passed": True})
    (only,) = store.entries()
    assert only.size_bytes == 0


def test_keys_are_one_if_their_fields_are_in_whatever_order():
    same = Key({"profiles": [[1, 8], [16, 512]], "precision": "fp16", "stage": "dncnn", "kind": "plan"})
    assert same == A_PLAN
    assert {same: 1}[A_PLAN] == 1
    assert A_PLAN != ANOTHER
    assert A_PLAN.name == "plan dncnn fp16"
    assert Key({"x": 1}).name == Key({"x": 1}).digest[:12]


def test_a_new_payload_takes_the_place_of_the_old_one(store, folder):
    store.write(A_PLAN, b"old")
    store.write(A_PLAN, b"new")
    assert store.read(A_PLAN) == (b"new", {})
    assert len(list(folder.glob("*.entry"))) == 1


def test_nobody_else_can_read_what_lies_in_the_folder(store, folder):
    store.write(A_PLAN, b"a plan")
    with store.lock(A_PLAN):
        pass
    assert folder.stat().st_mode & 0o777 == 0o700
    kinds = {path.suffix or path.name for path in folder.iterdir()}
    assert kinds == {"secret", ".entry", ".lock"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o720, 0o777])
def test_a_folder_that_others_can_reach_into_is_refused(folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UnsafeStore, match=f"mode {mode:04o}.*chmod 700"):
        Store(folder)


def test_a_folder_of_another_user_is_refused(store, folder, monkeypatch):
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    with pytest.raises(UnsafeStore, match=f"belongs to user {us}"):
        Store(folder)


def test_a_secret_that_others_could_have_read_is_refused(store, folder):
    (folder / "secret").chmod(0o644)
    with pytest.raises(UnsafeStore, match="secret is not a file of this user alone"):
        Store(folder)


def test_a_secret_that_is_cut_short_is_refused(store, folder):
    (folder / "secret").write_bytes(b"short")
    with pytest.raises(UnsafeStore, match="not a secret of 32 bytes"):
        Store(folder)


def entry_in(folder: Path) -> tuple[Path, dict, bytes]:
    (path,) = folder.glob("*.entry")
    manifest, payload = path.read_bytes().split(b"\n", 1)
    return path, json.loads(manifest), payload


def change_a_byte(folder: Path) -> None:
    path, _, _ = entry_in(folder)
    path.write_bytes(path.read_bytes().replace(b"a plan", b"a plot"))


def let_it_grow(folder: Path) -> None:
    path, _, _ = entry_in(folder)
    path.write_bytes(path.read_bytes() + b" and more")


def cut_it_short(folder: Path) -> None:
    path, _, _ = entry_in(folder)
    path.write_bytes(path.read_bytes()[:-1])


def link_to_another_file(folder: Path) -> None:
    path, _, _ = entry_in(folder)
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")


def let_others_write_it(folder: Path) -> None:
    entry_in(folder)[0].chmod(0o666)


def change_a_fact(folder: Path) -> None:
    path, _, _ = entry_in(folder)
    path.write_bytes(path.read_bytes().replace(b"71.25", b"99.75"))


def forge_payload_and_hash(folder: Path) -> None:
    """As one does who knows how the store works, but not its secret."""
    path, body, _ = entry_in(folder)
    body["sha256"] = hashlib.sha256(b"a plot").hexdigest()
    path.write_bytes(json.dumps(body).encode() + b"\na plot")


def put_rubbish_into_the_manifest(folder: Path) -> None:
    entry_in(folder)[0].write_text('{"schema": 1, "hmac": [')


def nest_the_manifest_too_deep(folder: Path) -> None:
    entry_in(folder)[0].write_text("[" * 100_000)


def take_the_hmac_away(folder: Path) -> None:
    path, body, payload = entry_in(folder)
    del body["hmac"]
    path.write_bytes(json.dumps(body).encode() + b"\n" + payload)


def change_the_secret(folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(32))


@pytest.mark.parametrize(
    "harm",
    [
        change_a_byte,
        let_it_grow,
        cut_it_short,
        link_to_another_file,
        let_others_write_it,
        change_a_fact,
        forge_payload_and_hash,
        put_rubbish_into_the_manifest,
        nest_the_manifest_too_deep,
        take_the_hmac_away,
        change_the_secret,
    ],
)
def test_an_entry_that_was_tampered_with_is_set_aside_and_never_given_out(store, folder, harm):
    store.write(A_PLAN, b"a plan", {"psnr_db": 71.25})
    harm(folder)
    store = Store(folder)
    (check,) = store.verify()
    assert check.problem
    with pytest.raises(Tampered, match=r"set aside in .*engines/set-aside"):
        store.read(A_PLAN)
    assert list((folder / "set-aside").glob("*.entry"))
    assert store.read(A_PLAN) is None  # so that it is built anew
    store.write(A_PLAN, b"a plan", {})
    assert store.read(A_PLAN) == (b"a plan", {})


def test_one_entry_cannot_stand_in_for_another(store, folder):
    """Both are ours, but a plan under another's name is the wrong network, or another precision."""
    store.write(A_PLAN, b"fp16")
    store.write(ANOTHER, b"fp32")
    for path in folder.glob(f"{ANOTHER.digest}*"):
        path.rename(folder / path.name.replace(ANOTHER.digest, A_PLAN.digest))
    with pytest.raises(Tampered, match="its manifest is that of plan dncnn fp32"):
        store.read(A_PLAN)


def test_an_entry_of_another_schema_is_as_good_as_none(store, folder):
    store.write(A_PLAN, b"a plan")
    path, _, _ = entry_in(folder)
    path.write_bytes(path.read_bytes().replace(b'"schema":1', b'"schema":0'))
    assert store.read(A_PLAN) is None
    assert store.verify()[0].problem == "it is of schema 0, not 1"
    store.prune(lambda entry: False)
    assert [path.name for path in folder.iterdir()] == ["secret"]


def test_all_entries_are_listed_and_verified(store, folder):
    store.write(ANOTHER, b"three", {"psnr_db": 90})
    store.write(A_PLAN, b"a plan")
    assert [(entry.key.name, entry.size_bytes) for entry in store.entries()] == [
        ("plan dncnn fp16", 6),
        ("plan dncnn fp32", 5),
    ]
    assert abs(store.entries()[0].made_at - time.time()) < A_DAY_S
    assert [check.problem for check in store.verify()] == [None, None]
    other = store.entries()[1].path
    other.write_bytes(other.read_bytes().replace(b"three", b"eerht"))
    assert [check.problem for check in store.verify()] == [
        None,
        "its payload is not the one that its manifest was written for",
    ]
    assert store.read(A_PLAN)


def test_pruning_removes_what_is_not_wanted_and_what_lies_about(store, folder):
    store.write(A_PLAN, b"a plan")
    store.write(ANOTHER, b"another")
    long_ago = time.time() - 2 * A_DAY_S
    for name in ("0123.part", "young.part"):
        (folder / name).write_bytes(b"left by a process that was killed")
        if name != "young.part":
            os.utime(folder / name, (long_ago, long_ago))
    gone = store.prune(lambda entry: entry.key.fields["precision"] == "fp32")
    assert [entry.key for entry in gone] == [ANOTHER]
    assert [entry.key for entry in store.entries()] == [A_PLAN]
    assert sorted(path.suffix for path in folder.iterdir()) == ["", ".entry", ".part"]
    store.remove(A_PLAN)
    assert store.read(A_PLAN) is None


def test_pruning_leaves_what_somebody_builds(store):
    store.write(A_PLAN, b"a plan")
    with store.lock(A_PLAN):
        assert store.prune(lambda entry: True) == []
    assert len(store.prune(lambda entry: True)) == 1


def test_a_disk_that_is_full_leaves_the_old_entry(store, folder, monkeypatch):
    store.write(A_PLAN, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            store.write(A_PLAN, b"new")
    assert store.read(A_PLAN) == (b"old", {})
    assert not list(folder.glob("*.part"))


def test_a_reader_sees_the_old_entry_or_the_new_one_while_others_write(store, folder):
    payloads = [bytes([number]) * 50_000 for number in range(4)]
    store.write(A_PLAN, payloads[0])
    code = "for n in range(200): store.write(Key({'stage': 'x'}), bytes([n % 4]) * 50_000)\nprint('written')"
    key = Key({"stage": "x"})
    store.write(key, payloads[0])
    writers = [in_another_process(code, folder) for _ in range(2)]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        found = store.read(key)
        assert found is not None
        assert found[0] in payloads
        reads += 1
    assert reads
    assert [writer.communicate()[0] for writer in writers] == ["written\n"] * 2
    assert not (folder / "set-aside").exists()


def test_two_processes_that_open_a_new_folder_at_once_go_by_one_secret(folder):
    others = [in_another_process("print(store._secret.hex())", folder) for _ in range(3)]
    secrets = {other.communicate()[0] for other in others}
    assert len(secrets) == 1
    assert secrets.pop().strip() == Store(folder)._secret.hex()


def test_a_lock_keeps_another_process_out_until_its_holder_is_gone(store, folder):
    code = "with store.lock(Key({'stage': 'x'})):\n    print('held', flush=True)\n    time.sleep(60)"
    holder = in_another_process(code, folder)
    assert holder.stdout.readline() == "held\n"
    key = Key({"stage": "x"})
    with pytest.raises(LockBusy, match="another process has held its lock"), store.lock(key, wait_s=0.0):
        pass
    with store.lock(A_PLAN, wait_s=0.0):
        pass  # another key is another lock

    polls = []

    def kill_on_second_poll() -> None:
        polls.append(1)
        if len(polls) == 2:
            holder.kill()

    with store.lock(key, while_waiting=kill_on_second_poll):
        assert holder.wait() < 0
    holder.stdout.close()


def test_a_wait_for_a_lock_can_be_broken_off(store):
    class Cancelled(Exception):
        pass

    def cancel() -> None:
        raise Cancelled

    with store.lock(A_PLAN), pytest.raises(Cancelled), store.lock(A_PLAN, while_waiting=cancel):
        pass
    with store.lock(A_PLAN, wait_s=0.0):
        pass  # and it is free again


def test_a_lock_file_that_is_pruned_before_it_is_locked_locks_nothing(store, monkeypatch):
    """Two would hold the lock: one of the file that is gone, the other of the file that is there now."""
    flock, gone = fcntl.flock, []

    def prune_first(descriptor: int, how: int) -> None:
        if not gone:
            gone.append(store._lock_path(A_PLAN.digest))
            gone[0].unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", prune_first)
    with store.lock(A_PLAN):
        assert gone[0].exists()
        with pytest.raises(LockBusy), store.lock(A_PLAN, wait_s=0.0):
            pass


def test_a_lock_is_held_by_one_thread_even_while_lock_files_are_pruned(store):
    inside, most = [], []

    def work() -> None:
        for _ in range(5):
            with store.lock(A_PLAN):
                inside.append(1)
                most.append(len(inside))
                store.write(A_PLAN, b"x")
                inside.pop()
            store.prune(lambda entry: True)

    threads = [Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 15
    assert max(most) == 1

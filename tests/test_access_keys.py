"""Is a key what it says, and a keys file no more than a list of hashes?"""

import json
import re
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.__main__ import main
from service.access.callers import payer_at
from service.access.gate import is_loopback
from service.access.header import token_of
from service.access.keys import ApiKey, BadKeysFile, KeyRing, Scope, add_key, new_key, read_keys, remove_key
from service.errors import BadInput, NoKey
from service.rpc.access import address_of

BOTH = (Scope.SUBMIT, Scope.READ)
FORM = re.compile(r"qf_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "keys.json"


def made(path: Path, name: str = "camera 7", **said: object) -> tuple[ApiKey, str]:
    key, token = new_key(name, BOTH, **said)  # type: ignore[arg-type]
    add_key(path, key)
    return key, token


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER   ", "\t Bearer "])
def test_the_scheme_is_taken_in_any_case(scheme):
    key, token = new_key("a", BOTH)
    assert token_of([scheme + token]) == token_of([(scheme + token).encode()]) == (key.id, token)


@pytest.mark.parametrize("sent", ["", "Bearer", "Basic {}", "{}", "Bearer {} ,", "Bearer {}x", "Bearer {0} {0}"])
def test_what_is_not_bearer_and_a_key_shows_none(sent):
    _, token = new_key("a", BOTH)
    with pytest.raises(NoKey) as refused:
        token_of([sent.format(token)])
    assert token not in str(refused.value)


def test_two_authorization_headers_are_one_too_many():
    _, token = new_key("a", BOTH)
    with pytest.raises(NoKey, match="more than one"):
        token_of([f"Bearer {token}", f"Bearer {token}"])


# Of honest headers, so that chance comes near them.
PIECES = st.sampled_from(["Bearer", "bearer", " ", "\t", "qf_", "0123456789ab", "_", "A" * 43, ",", "\x00", "é", "\n"])


@given(st.lists(st.one_of(st.text(), st.binary(), st.lists(PIECES, max_size=8).map("".join)), max_size=3))
def test_whatever_the_header_holds_it_is_a_key_by_form_or_refused_in_words_of_our_own(values):
    told, shown = "", None
    try:
        shown = token_of(values)
    except NoKey as refused:
        told = str(refused)
    if shown is None:
        texts = [value.decode("latin-1") if isinstance(value, bytes) else value for value in values]
        assert told.isascii()
        assert not any(len(text) > 12 and text in told for text in texts)
    else:
        found = FORM.fullmatch(shown[1])
        assert found
        assert found[1] == shown[0]


def test_the_file_holds_hashes_and_is_its_owners_alone(path):
    key, token = made(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert token not in text
    assert token[len("qf_") + len(key.id) :] not in text
    assert key.sha256 in text
    assert key.sha256 not in repr(key)
    assert [left.name for left in path.parent.iterdir() if left.suffix == ".part"] == []


def test_a_key_is_found_by_all_of_it_and_by_nothing_less(path):
    key, token = made(path)
    other, _ = made(path, "another")
    ring = KeyRing(path)
    assert ring.find(key.id, token) == key
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    words = set()
    for key_id, shown in ((key.id, wrong), (other.id, token), ("0" * 12, token)):
        with pytest.raises(NoKey) as refused:
            ring.find(key_id, shown)
        words.add(str(refused.value))
    assert len(words) == 1, "which of them it was is nobody's business"


def test_a_revoked_key_stops_and_a_new_one_starts_while_the_file_is_in_use(path):
    (old, old_token), (kept, kept_token) = made(path), made(path, "kept")
    ring = KeyRing(path)
    assert remove_key(path, old.id) == old
    with pytest.raises(NoKey):
        ring.find(old.id, old_token)
    with pytest.raises(NoKey):
        ring.check(old.id)
    new, new_token = made(path, "new")
    assert ring.find(new.id, new_token) == new
    assert ring.find(kept.id, kept_token) == kept


def test_a_key_ends_with_its_time(path):
    over, token = made(path, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(NoKey):
        KeyRing(path).find(over.id, token)
    good, token = made(path, expires_at=datetime.now(UTC) + timedelta(days=1))
    assert KeyRing(path).find(good.id, token) == good


def test_a_file_that_is_being_edited_changes_nothing_and_one_that_is_gone_lets_nobody_in(path, caplog):
    key, token = made(path)
    good = path.read_text()
    ring = KeyRing(path)
    path.write_text(good[:-20])
    assert ring.find(key.id, token) == key
    assert "stay in force" in caplog.text
    path.unlink()
    with pytest.raises(NoKey):
        ring.find(key.id, token)
    path.write_text(good)
    assert ring.find(key.id, token) == key


@pytest.mark.parametrize(
    "text", [None, "", "[]", '{"version": 2, "keys": []}', '{"version": 1, "keys": [{"id": "SECRET"}]}', "\xff"]
)
def test_a_service_does_not_start_with_a_file_that_is_none(path, text):
    path.parent.mkdir()
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(BadKeysFile) as refused:
        KeyRing(path)
    assert str(path) in str(refused.value)
    assert "SECRET" not in str(refused.value)


def test_an_id_that_stands_twice_is_refused(path):
    made(path)
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"keys": document["keys"] * 2}))
    with pytest.raises(BadKeysFile, match="twice"):
        read_keys(path)


def test_a_file_that_others_can_write_is_warned_of(path, caplog):
    made(path)
    path.chmod(0o666)
    KeyRing(path)
    assert "could add keys" in caplog.text


def test_keys_made_at_once_are_all_kept(path):
    threads = [threading.Thread(target=made, args=(path, f"key {number}")) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in read_keys(path)} == {f"key {number}" for number in range(8)}


def test_a_key_that_replaces_another_sees_its_jobs(path):
    first, _ = made(path)
    second, _ = new_key("camera 7", BOTH, replaces=first)
    third, _ = new_key("camera 7", BOTH, replaces=second)
    assert first.holder == second.holder == third.holder == first.id
    assert len({first.id, second.id, third.id}) == 3


@pytest.mark.parametrize("name", ["", "é", "a\nb", "x" * 81])
def test_a_name_is_short_and_plain(name):
    with pytest.raises(BadInput, match="name"):
        new_key(name, BOTH)


def test_the_command_line_makes_shows_and_revokes_keys(path, capsys):
    main_ = run_with(path, capsys)
    token, told = main_("new", "camera 7", "--requests-per-minute", "60")
    token = token.strip()
    found = FORM.fullmatch(token)
    assert found, "the key stands alone on stdout"
    assert token not in told
    assert found[1] in told
    listed, _ = main_("list")
    assert found[1] in listed
    assert "camera 7" in listed
    assert "60 requests a minute" in listed
    shown = json.loads(main_("list", "--json")[0])[0]
    assert shown["scopes"] == ["read", "submit"]
    assert "sha256" not in shown

    replacing = (main_("new", "--replaces", found[1])[0]).strip()
    ring = KeyRing(path)
    second = ring.find(*token_of([f"Bearer {replacing}"]))
    assert (second.holder, second.name, second.requests_per_minute) == (found[1], "camera 7", 60)
    assert "good no more" in main_("revoke", found[1])[0]
    with pytest.raises(NoKey):
        ring.find(found[1], token)
    assert ring.find(second.id, replacing) == second


@pytest.mark.parametrize(
    "arguments", [("new",), ("new", "a", "--scopes", "all"), ("new", "--replaces", "0" * 12), ("revoke", "0" * 12)]
)
def test_the_command_line_refuses_what_makes_no_sense(path, capsys, arguments):
    main_ = run_with(path, capsys)
    main_("new", "somebody")
    before = path.read_text()
    with pytest.raises(SystemExit) as ended:
        main(["keys", *arguments, "--keys-file", str(path)])
    assert ended.value.code != 0
    assert path.read_text() == before


def run_with(path, capsys):
    def run(*arguments: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["keys", *arguments, "--keys-file", str(path)])
        assert not ended.value.code
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


@pytest.mark.parametrize(
    ("address", "payer"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("", "nowhere"),
    ],
)
def test_an_address_pays_alone_and_a_subscribers_many_addresses_pay_together(address, payer):
    assert payer_at(address) == payer


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:50000", "127.0.0.1"),
        ("ipv6:[::1]:50000", "::1"),
        ("ipv6:%5B2001:db8::1%5D:50000", "2001:db8::1"),
        ("unix:", ""),
    ],
)
def test_a_peer_of_grpc_has_an_address(peer, address):
    assert address_of(peer) == address


@pytest.mark.parametrize(
    ("host", "alone"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)]
)
def test_what_only_this_machine_can_reach_is_known(host, alone):
    assert is_loopback(host) is alone

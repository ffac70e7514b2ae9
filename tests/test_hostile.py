"""Files meant to hurt cost one clear refusal each: the whole service, as a user meets it, answers and lives on."""

import socket
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
from hostile.corpus import IMAGE, VIDEO, attacks, burdened, clip, photo
from test_service import serving

from service.processes import resident_bytes

MEMORY_BYTES = 400 * 1024**2
LIMITS = {
    "decode_memory_bytes": MEMORY_BYTES,
    "decode_timeout_s": 30,
    "max_upload_bytes": 4 * 1024**2,
    "max_video_frames": 500,
    "model": "",
}
SECRET = b"nobody but its owner may read this"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    limits = {name: value for name, value in LIMITS.items() if value != ""}
    with serving(tmp_path_factory.mktemp("data"), **limits) as served:
        yield served


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "secret"
    path.write_bytes(SECRET)
    return path


@contextmanager
def bait():
    """A host that nobody may call: gives its address, and whom it has heard."""
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        over = threading.Event()

        def listen():
            while not over.is_set():
                try:
                    caller, address = listener.accept()
                except TimeoutError:
                    continue
                heard.append(address)
                caller.close()

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/segment.ts", heard
        finally:
            over.set()
            thread.join()


@contextmanager
def watched_memory(pid):
    """Gives a list whose only entry is the most that a process and its descendants held together."""
    most, over = [0], threading.Event()

    def watch():
        while not over.wait(0.05):
            most[0] = max(most[0], resident_bytes(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def verdict(client, answer):
    """The status of an answer; of an accepted job, that of its end."""
    if answer.status_code != 202:
        return answer.status_code, answer.json() if "json" in answer.headers["Content-Type"] else None
    url = answer.headers["Location"]
    while (job := client.get(url).json())["state"] in ("queued", "running"):
        time.sleep(0.05)
    return (job["error"]["status"], job["error"]) if job["error"] else (200, None)


def workers(client):
    return sorted(worker["pid"] for worker in client.get("/readyz").json()["workers"])


def test_each_attack_is_refused_and_the_service_lives_on(service, secret):
    with service.client() as client, bait() as (url, heard), watched_memory(service.process.pid) as most:
        before, held = workers(client), resident_bytes(service.process.pid)
        wrong = []
        for attack in attacks(url, str(secret)):
            files = {"file": (attack.file_name, attack.content, attack.content_type)}
            status, problem = verdict(client, client.post(attack.door, files=files))
            if status not in attack.statuses:
                wrong.append(f"{attack.name}: {status} {problem}")
            assert SECRET.decode() not in str(problem), attack.name
        assert not wrong, "\n".join(wrong)
        assert heard == []
        assert workers(client) == before
        assert most[0] - held < 3 * MEMORY_BYTES
        good = client.post(IMAGE, files={"file": ("good.png", photo("PNG"))})
        assert good.status_code == 200


def test_what_is_bad_beside_the_pixels_costs_at_most_itself(service):
    with service.client() as client, watched_memory(service.process.pid) as most:
        before, held = workers(client), resident_bytes(service.process.pid)
        wrong = []
        for name, content, what in burdened():
            for form in ("same", "png"):
                answer = client.post(
                    IMAGE, files={"file": ("a", content)}, data={"format": form}, headers={"Accept": "application/json"}
                )
                told = answer.json()
                if answer.status_code != 200 or set(told["input"]["lost"]) - {what, "text"}:
                    wrong.append(
                        f"{name} as {form}: {answer.status_code} {told.get('detail') or told['input']['lost']}"
                    )
        assert not wrong, "\n".join(wrong)
        assert workers(client) == before
        assert most[0] - held < 3 * MEMORY_BYTES


def test_a_body_that_never_ends_is_cut_off(service):
    sent = [0]

    def endless():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        while True:
            sent[0] += 65536
            yield b"\x89PNG\r\n\x1a\n" * 8192

    for door in (IMAGE, VIDEO):
        with service.client() as client:
            try:
                answer = client.post(
                    door, content=endless(), headers={"Content-Type": "multipart/form-data; boundary=b"}
                )
                assert answer.status_code == 413
            except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
                pass  # it hung up while this side was still talking
            assert client.get("/readyz").status_code == 200
    assert sent[0] < 100 * LIMITS["max_upload_bytes"]


NAMES = [
    "../../../../etc/passwd",
    "..\\..\\windows\\system32\\a.png",
    "/etc/shadow",
    "a\0b.png",
    'x"; filename="/etc/passwd',
    "x\r\nSet-Cookie: a=b",
    "\u202egnp.exe",
    "." * 300,
    "a" * 5000,
    "$(touch pwned).png",
    "con.png",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_leads_nowhere(service, name):
    """It is the caller's word for the file, and comes back as no more than a plain one."""
    with service.client() as client:
        answer = client.post(IMAGE, files={"file": (name, photo("PNG", 32), "text/html")})
    assert answer.status_code in (200, 400, 422)
    assert "Set-Cookie" not in answer.headers
    told = answer.headers.get("Content-Disposition", "")
    assert not set(told.partition("filename=")[2].strip('"')) & set('/\\"\r\n\0$()')
    assert ".." not in told


def test_a_polyglot_comes_back_as_nothing_but_a_picture(service):
    hidden = b"PK\3\4 <script>alert(1)</script> <?php system('id') ?>"
    with service.client() as client:
        answer = client.post(IMAGE, files={"file": ("a.php", photo("PNG", 32) + hidden, "text/html")})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert b"script" not in answer.content
    assert b"PK\3\4" not in answer.content


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "AVIF", "HEIF"])
def test_a_picture_cut_at_any_kilobyte_is_refused_or_shown_as_far_as_it_goes(service, form):
    whole = photo(form, 48)
    with service.client() as client:
        for size in range(0, len(whole), 1024):
            answer = client.post(IMAGE, files={"file": ("cut", whole[:size])})
            assert answer.status_code in (200, 422), f"{size} bytes: {answer.text}"
            if answer.status_code == 422:
                assert answer.json()["code"] == "bad_input"


def test_a_video_cut_short_or_bent_ends_its_own_job_only(service):
    whole = clip(frames=4, side=32)
    bent = bytearray(whole)
    bent[len(whole) // 2] ^= 0xFF
    with service.client() as client:
        before = workers(client)
        for content in (whole[:40], whole[: len(whole) // 2], bytes(bent)):
            status, problem = verdict(client, client.post(VIDEO, files={"file": ("a.mp4", content)}))
            assert status in (200, 422), problem
        assert workers(client) == before

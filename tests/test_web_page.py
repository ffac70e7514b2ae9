"""Can a visitor with nothing but a browser have pictures and videos denoised, and see what came of it?"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import av
import httpx
import numpy as np
import pytest
from api_support import PATIENCE_S, PlayedWorker, noisy_png, served
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from s3_server import S3Server
from watched_service import Watched

from service.access.keys import Scope, add_key, new_key
from service.demo import running_service
from service.media.formats import IMAGE_FORMATS, VIDEO_FORMATS
from service.settings import Settings

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FILES = Path(__file__).parent.parent / "service" / "api" / "web"

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")


@pytest.fixture(scope="module")
def client(tmp_path_factory, modules_redis_url) -> Iterator[httpx.Client]:
    with served(Settings(redis_url=modules_redis_url, data_dir=tmp_path_factory.mktemp("web"), port=0)) as (client, _):
        yield client


def test_a_browser_gets_the_page_and_a_program_what_it_always_got(client):
    page = client.get("/", headers=HTML)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.startswith("<!doctype html>")
    for accept in ("*/*", "application/json", ""):
        assert client.get("/", headers={"Accept": accept}).json()["denoise"] == "/denoise/image"
    assert page.headers["vary"] == client.get("/").headers["vary"] == "Accept"


def test_the_page_is_all_our_own_and_a_browser_is_told_so(client):
    page = client.get("/", headers=HTML)
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
    parts = re.findall(r'(?:src|href)="(web/[^"]+)"', page.text)
    assert {part.rsplit(".", 1)[1] for part in parts} == {"js", "css", "svg"}
    for part in parts:
        answer = client.get(f"/{part}")
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-type"].split(";")[0] in {"text/javascript", "text/css", "image/svg+xml"}
    for path in FILES.iterdir():
        elsewhere = [url for url in re.findall(r"https?://[^\s\"')]+", path.read_text()) if "www.w3.org" not in url]
        assert not elsewhere, path.name
    assert not re.search(r"<script>|\son\w+=|\sstyle=|innerHTML|insertAdjacentHTML|document\.write", all_of_it())
    for name in ("../app.py", "%2e%2e/app.py", "nothing.js"):
        assert client.get(f"/web/{name}").status_code == 404


def noisy_clip(path: Path) -> None:
    """In a codec that every browser has."""
    rng = np.random.default_rng(3)
    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libvpx-vp9", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(12):
            pixels = rng.normal(120, 20, (64, 96, 3)).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def all_of_it() -> str:
    return "".join(path.read_text() for path in FILES.iterdir())


def test_the_page_offers_formats_that_there_are():
    html = (FILES / "page.html").read_text()
    for kind, formats in (("image", IMAGE_FORMATS), ("video", VIDEO_FORMATS)):
        (select,) = re.findall(rf'<select id="{kind}-format">.*?</select>', html, re.DOTALL)
        offered = [option.get("value") for option in ElementTree.fromstring(select)]
        assert sorted(offered) == sorted(formats)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab of its own, in which nothing may go wrong behind the visitor's back."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE_S * 3000)
    expect.set_options(timeout=PATIENCE_S * 3000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if "Content Security Policy" in line.text else None)
    yield page
    context.close()
    assert not wrong


def visit(page: Page, url: str, model: str = "nlm") -> None:
    page.goto(url)
    expect(page.locator("#model optgroup option").first).to_be_attached()
    page.select_option("#model", model)


@in_a_browser
def test_a_picture_is_denoised_compared_and_fetched(page: Page, watched: Watched, tmp_path: Path):
    noisy, clean = tmp_path / "street <b>at night.png", tmp_path / "clean.png"
    noisy.write_bytes(noisy_png(96, 64))
    Image.new("RGB", (96, 64), (128, 128, 128)).save(clean)
    visit(page, watched.base_url)
    page.set_input_files("#reference", clean)
    page.set_input_files("#files", noisy)
    card = page.locator("article")
    expect(card.locator("h2")).to_have_text(noisy.name)  # as a name, not as markup
    expect(card).to_have_class("succeeded")
    expect(card.locator(".state")).to_contain_text("by nlm on")
    told = dict(zip(card.locator("dt").all_inner_texts(), card.locator("dd").all_inner_texts(), strict=True))
    assert float(told["PSNR"].split()[0]) > float(told["PSNR before"].split()[0])
    assert re.findall(r"\d+", told["Size"]) == ["96", "64"]

    expect(card.locator(".stage.both img")).to_have_count(2)
    before = card.locator(".before")
    card.locator(".knob input").fill("25")
    assert "25%" in before.evaluate("shown => getComputedStyle(shown.parentElement).getPropertyValue('--cut')")
    with page.expect_download() as download:
        card.locator(".fetch").click()
    assert download.value.suggested_filename.endswith("-denoised.png")
    assert Image.open(download.value.path()).size == (96, 64)


@in_a_browser
def test_a_video_is_followed_and_seen_beside_its_source(page: Page, watched: Watched, tmp_path: Path):
    clip = tmp_path / "clip.webm"
    noisy_clip(clip)
    visit(page, watched.base_url)
    page.set_input_files("#files", clip)
    card = page.locator("article")
    expect(card).to_have_class("succeeded")
    expect(card.locator(".stage.both video")).to_have_count(2)
    card.locator(".player button").click()
    page.wait_for_function("[...document.querySelectorAll('video')].every(video => video.currentTime > 0)")
    card.locator(".player button").click()
    expect(card.locator(".player button")).to_have_text("Play")
    with page.expect_download() as download:
        card.locator(".fetch").click()
    assert download.value.suggested_filename.endswith(".webm")


@in_a_browser
def test_several_files_are_done_in_turn_and_the_bad_one_says_why(page: Page, watched: Watched, tmp_path: Path):
    """A video is one by its bytes, whatever its name; what is neither is refused in the service's own words."""
    clip, text, picture = tmp_path / "clip.png", tmp_path / "letter.png", tmp_path / "good.png"
    noisy_clip(clip)
    text.write_text("Dear Sir or Madam")
    picture.write_bytes(noisy_png())
    visit(page, watched.base_url)
    page.set_input_files("#files", [clip, text, picture])
    cards = {name: page.locator("li", has_text=name).locator("article") for name in ("clip", "letter", "good")}
    expect(cards["letter"]).to_have_class("failed")
    expect(cards["letter"].locator(".state")).to_contain_text("accepted are PNG")
    expect(cards["clip"]).to_have_class("succeeded")
    expect(cards["good"]).to_have_class("succeeded")
    cards["letter"].locator(".stop").click()
    expect(page.locator("article")).to_have_count(2)

    page.reload()
    expect(page.locator("article.succeeded")).to_have_count(2)  # a tab keeps its jobs
    page.locator("li", has_text="good").locator(".stop").click()
    expect(page.locator("article")).to_have_count(1)
    page.reload()
    expect(page.locator("article")).to_have_count(1)


@in_a_browser
def test_a_visitor_is_asked_for_a_key_where_one_is_needed(page: Page, fresh_redis_url: str, tmp_path: Path):
    key, token = new_key("visitor", (Scope.SUBMIT, Scope.READ))
    add_key(tmp_path / "keys.json", key)
    settings = Settings(redis_url=fresh_redis_url, data_dir=tmp_path / "data", port=0, keys_file=tmp_path / "keys.json")
    picture = tmp_path / "noisy.png"
    picture.write_bytes(noisy_png())
    with served(settings) as (client, _), PlayedWorker(settings) as worker:
        assert client.get("/", headers=HTML).status_code == client.get("/web/page.js").status_code == 200
        page.goto(str(client.base_url))
        expect(page.get_by_role("alert")).to_contain_text("API key")
        page.fill("#key", token)
        page.press("#key", "Tab")
        expect(page.get_by_role("alert")).to_be_hidden()
        expect(page.locator("#model optgroup option").first).to_be_attached()

        worker.go.clear()
        page.set_input_files("#files", picture)
        assert worker.took.wait(PATIENCE_S)
        card = page.locator("article")
        with page.expect_response(lambda response: response.request.method == "DELETE"):
            card.get_by_role("button", name="Cancel").click()
        worker.go.set()  # which asks whether it is to go on, and is told
        expect(card.locator(".state")).to_have_text("Cancelled")

        page.set_input_files("#files", picture)
        done = page.locator("article.succeeded")
        expect(done).to_have_count(1)
        with page.expect_download() as download:
            done.locator(".fetch").click()
        assert (
            Path(download.value.path()).read_bytes() != picture.read_bytes()
        )  # the played worker's, for a key's holder
        assert token not in page.content()
        assert (
            page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])").count(token) == 0
        )


@in_a_browser
def test_results_that_lie_in_a_bucket_are_seen_all_the_same(page: Page, s3: S3Server, tmp_path: Path):
    picture = tmp_path / "noisy.png"
    picture.write_bytes(noisy_png(96, 64))
    with running_service(blob_url=s3.new_prefix(), blob_allow_http=True, result_redirect=True) as base_url:
        visit(page, base_url)
        page.set_input_files("#files", picture)
        card = page.locator("article")
        expect(card).to_have_class("succeeded")
        expect(card.locator(".stage.both img")).to_have_count(2)

import contextlib
import io
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hostile.corpus import exr
from hypothesis import given, settings
from hypothesis import strategies as st
from media_samples import bgr, encoded, photo, png, tiff
from PIL import Image

from service.errors import BadInput, FrameTooLarge, UnknownFormat
from service.media.heif import read_head
from service.media.sniff import HEAD_BYTES, content_type_of, probe_image
from service.media.tiff import first_directory
from service.settings import Settings

LIMITS = Settings()
ROOT = Path(__file__).parent.parent
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


def facts(data: bytes, limits: Settings = LIMITS):
    return probe_image(io.BytesIO(data), limits)


def samples() -> dict[str, bytes]:
    picture = photo(48, 64)
    return {
        "image/png": encoded(".png", bgr(picture)),
        "image/jpeg": encoded(".jpg", bgr(picture)),
        "image/webp": encoded(".webp", bgr(picture)),
        "image/tiff": encoded(".tiff", bgr(picture)),
        "image/bmp": encoded(".bmp", bgr(picture)),
        "image/avif": encoded(".avif", bgr(picture)),
        "image/x-exr": exr(64, 48),
    }


SAMPLES = samples()
AVIF = b"\0\0\0\x10ftypavif\0\0\0\0\0\0\1\0meta\0\0\0\0"


@pytest.mark.parametrize("content_type", SAMPLES)
def test_each_image_format_is_known_by_its_bytes_and_measured_from_its_header(content_type):
    found = facts(SAMPLES[content_type])
    assert (found.content_type, found.width, found.height) == (content_type, 64, 48)
    assert found.bytes == len(SAMPLES[content_type])
    assert found.frames is None


@pytest.mark.parametrize(
    ("head", "content_type"),
    [
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "video/mp4"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "video/quicktime"),
        (b"\0\0\0\x08wide\0\0\1\0mdat", "video/quicktime"),
        (b"\0\0\0\x18ftyp3gp4\0\0\0\0", "video/3gpp"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\x82\x84webm", "video/webm"),
        (b"\x1a\x45\xdf\xa3\xa3\x42\x86\x81\x01\x42\x82\x88matroska", "video/x-matroska"),
        (b"RIFF\x10\x20\0\0AVI LIST", "video/x-msvideo"),
        ((b"G" + bytes(187)) * 5, "video/mp2t"),
        ((bytes(4) + b"G" + bytes(187)) * 5, "video/mp2t"),
        (b"\0\0\1\xba\x44", "video/mpeg"),
        (b"FLV\1\5", "video/x-flv"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9", "video/x-ms-asf"),
        (b"OggS\0\2", "video/ogg"),
        (b"YUV4MPEG2 W64 H48 F25:1\n", "video/x-yuv4mpeg"),
    ],
)
def test_each_video_format_is_known_by_its_bytes(head, content_type):
    assert content_type_of(head) == content_type


@pytest.mark.parametrize(
    "head",
    [
        b"",
        PLAYLIST,
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"<?xml version='1.0'?><MPD>",
        b"GIF89a\x01\0\1\0",
        b"BMW is a car maker",
        b"Good morning. " * 100,
        b"free beer, skip it",
        b"\0\0\0\x1cftypcrx ",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"%PDF-1.7",
    ],
)
def test_text_playlists_and_other_files_are_of_no_known_type(head):
    assert content_type_of(head) is None


def test_an_unknown_file_is_refused_with_its_first_bytes_and_what_is_accepted():
    with pytest.raises(
        UnknownFormat, match=r"starts with 47 49 46 38 .* accepted are PNG, JPEG, WebP, TIFF, AVIF, OpenEXR, BMP, HEIC"
    ):
        facts(b"GIF89a" + bytes(100))


def test_a_video_sent_as_an_image_is_told_what_it_is():
    with pytest.raises(UnknownFormat, match="is video/mp4"):
        facts(b"\0\0\0\x20ftypisom" + bytes(100))


def test_an_empty_file_is_bad_input():
    with pytest.raises(BadInput, match="empty"):
        facts(b"")


@pytest.mark.parametrize("content_type", SAMPLES)
def test_a_header_cut_short_anywhere_is_bad_input(content_type):
    data = SAMPLES[content_type]
    for length in range(1, min(len(data), 512)):
        cut = data[:length]
        try:
            facts(cut)
        except BadInput:
            continue
        # Whoever is content with fewer bytes has read the size already.
        assert (facts(cut).width, facts(cut).height) == (64, 48)


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_bad_input(width, height):
    with pytest.raises(BadInput, match=f"{width}x{height}"):
        facts(png(width, height, 8, 0, bytes(max(width * height, 1))))


def test_too_many_pixels_are_refused_with_the_value_and_the_bound():
    with pytest.raises(FrameTooLarge, match=r"64x48; at most 3000 pixels"):
        facts(SAMPLES["image/png"], Settings(max_image_pixels=3000))


def test_a_bomb_of_few_bytes_is_refused_by_its_header_alone():
    with pytest.raises(FrameTooLarge, match="60000x60000"):
        facts(png(60000, 60000, 1, 0, b""))


def test_a_side_longer_than_any_decoder_takes_is_refused():
    with pytest.raises(FrameTooLarge, match="a side of at most 1000000"):
        facts(png(2_000_000, 1, 1, 0, bytes(250_000)))


def test_an_animated_png_is_refused():
    with pytest.raises(BadInput, match="animated"):
        facts(png(2, 2, 8, 0, bytes(4), [(b"acTL", struct.pack(">II", 2, 0))]))


def test_an_animated_webp_is_refused():
    header = b"VP8X" + struct.pack("<IB3x", 10, 0x02) + (63).to_bytes(3, "little") + (47).to_bytes(3, "little")
    with pytest.raises(BadInput, match="animated"):
        facts(b"RIFF" + struct.pack("<I", 4 + len(header)) + b"WEBP" + header)


def test_an_avif_of_many_pictures_is_refused():
    frames = [Image.fromarray(photo(16, 16, seed=seed)) for seed in (1, 2)]
    made = io.BytesIO()
    frames[0].save(made, "AVIF", save_all=True, append_images=frames[1:])
    with pytest.raises(BadInput, match="sequence"):
        facts(made.getvalue())


def test_an_avif_or_a_heic_by_another_name_is_known():
    assert content_type_of(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf") == "image/avif"
    assert content_type_of(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic") == "image/heic"
    assert content_type_of(b"\0\0\0\x18ftypmsf1\0\0\0\0msf1hevc") == "image/heic"
    assert content_type_of(b"\0\0\0\x14ftypmif1\0\0\0\0mif1") is None


@pytest.mark.parametrize("turn", range(1, 9))
def test_how_an_avif_is_turned_is_told_as_exif_would(turn):
    told = Image.Exif()
    told[274] = turn
    made = io.BytesIO()
    Image.fromarray(photo(24, 16)).save(made, "AVIF", exif=told.tobytes())
    head = read_head(made)
    assert (head.width, head.height, head.bits, head.orientation) == (16, 24, 8, turn)


def test_all_three_kinds_of_webp_are_measured():
    picture = photo(30, 20)
    lossy = encoded(".webp", bgr(picture), [cv2.IMWRITE_WEBP_QUALITY, 80])
    lossless = encoded(".webp", bgr(picture), [cv2.IMWRITE_WEBP_QUALITY, 101])
    alpha = encoded(".webp", np.dstack([bgr(picture), picture[..., 0]]), [cv2.IMWRITE_WEBP_QUALITY, 80])
    assert [data[12:16] for data in (lossy, lossless, alpha)] == [b"VP8 ", b"VP8L", b"VP8X"]
    for data in (lossy, lossless, alpha):
        assert (facts(data).width, facts(data).height) == (20, 30)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_tiff_is_measured_in_both_byte_orders_and_both_sizes(order, big):
    found = facts(tiff(photo(30, 20), 2, order=order, big=big))
    assert (found.content_type, found.width, found.height) == ("image/tiff", 20, 30)


def test_a_tiff_that_begins_with_a_thumbnail_is_refused():
    with pytest.raises(BadInput, match="thumbnail"):
        facts(tiff(photo(8, 8), 2, extra={254: (4, [1])}))


def pages_in_a_row(count: int, ring: bool = False) -> bytes:
    """So many directories of a picture of 2x2 pixels, that all share it."""
    table = b"".join(struct.pack("<HHII", tag, 4, 1, 2) for tag in (256, 257))
    size = 2 + len(table) + 4
    made = b"II*\0" + struct.pack("<I", 8)
    for number in range(count):
        last = number == count - 1
        following = 0 if last and not ring else 8 if last else 8 + (number + 1) * size
        made += struct.pack("<H", 2) + table + struct.pack("<I", following)
    return made


def test_pages_of_a_tiff_are_counted():
    assert facts(pages_in_a_row(1)).pages is None
    assert facts(pages_in_a_row(1000)).pages == 1000


def test_a_tiff_of_too_many_pages_is_refused_with_the_bound():
    with pytest.raises(BadInput, match="more than 1000 pages"):
        facts(pages_in_a_row(1001))


def test_pages_that_go_round_in_a_ring_are_refused():
    with pytest.raises(BadInput, match="the page after page 7 is an earlier one"):
        facts(pages_in_a_row(7, ring=True))


def test_pages_that_are_too_large_together_are_refused():
    with pytest.raises(FrameTooLarge, match="100 pages of 400 pixels together; at most 399"):
        facts(pages_in_a_row(100), Settings(max_image_pixels=399))


def test_a_tiff_directory_beyond_the_end_is_bad_input():
    with pytest.raises(BadInput, match="cut short"):
        facts(b"II*\0\xff\xff\xff\xff" + bytes(100))


def test_a_bigtiff_that_claims_endless_entries_is_bad_input():
    with pytest.raises(BadInput, match="entries"):
        facts(b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63) + bytes(100))


class CountingFile(io.BytesIO):
    """Knows how much was read of it."""

    bytes_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.bytes_read += len(data)
        return data


def overlapping_tags() -> bytes:
    """A big-endian TIFF in which subfile type, width and height claim 14 MiB each, all of them the same bytes."""
    count, at = 7 * 1024**2, 64
    table = b"".join(struct.pack(">HHII", tag, 3, count, at) for tag in (254, 256, 257))
    head = b"MM\0*" + struct.pack(">IH", 8, 3) + table + bytes(4)
    return head.ljust(at, b"\0") + struct.pack(">H", 48) * count


def test_a_tiff_that_claims_endless_values_is_measured_by_a_few_bytes():
    file = CountingFile(overlapping_tags())
    found = probe_image(file, LIMITS)
    assert (found.width, found.height) == (48, 48)
    assert file.bytes_read < 2 * HEAD_BYTES


def test_values_of_a_tiff_that_overlap_are_read_only_up_to_their_common_bound():
    tags = first_directory(io.BytesIO(overlapping_tags())).tags
    assert list(tags) == [254]
    assert tags[254].raw == struct.pack("<H", 48) * (7 * 1024**2)


def test_a_jpeg_of_padding_ends():
    with pytest.raises(BadInput, match="junk"):
        facts(b"\xff\xd8" + b"\xff" * 100_000)


def test_an_old_bitmap_and_one_stored_top_down_are_measured():
    core = b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 7, 5, 1, 24) + bytes(120)
    assert (facts(core).width, facts(core).height) == (7, 5)
    down = b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 7, -5, 1, 24) + bytes(120)
    assert (facts(down).width, facts(down).height) == (7, 5)


@given(st.binary(max_size=2 * HEAD_BYTES))
def test_any_bytes_have_a_type_or_none(head):
    found = content_type_of(head)
    assert found is None or found.startswith(("image/", "video/"))


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_header_costs_nothing_but_a_clear_refusal(data):
    sample = bytearray(data.draw(st.sampled_from([*SAMPLES.values(), tiff(photo(8, 8), 2, big=True, order=">")])))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=8)):
        if at < len(sample):
            sample[at] = value
    cut = data.draw(st.integers(0, len(sample)))
    with contextlib.suppress(BadInput):
        found = facts(bytes(sample[:cut]))
        assert 0 < found.width * found.height <= LIMITS.max_image_pixels


@settings(max_examples=300)
@given(
    st.sampled_from(
        [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF....WEBPVP8", b"II*\0", b"MM\0+\0\x08\0\0", b"BM", AVIF]
    ),
    st.binary(max_size=200),
)
def test_noise_behind_a_good_beginning_costs_nothing_but_a_clear_refusal(magic, rest):
    with contextlib.suppress(BadInput):
        found = facts(magic + rest)
        assert 0 < found.width * found.height <= LIMITS.max_image_pixels


def test_the_api_process_loads_no_decoder_to_look_at_files():
    code = (
        "import sys; import service.media.sniff, service.media.formats, service.media.probe;"
        "print([name for name in ('cv2', 'av', 'PIL', 'numpy', 'torch') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout.strip() == "[]"

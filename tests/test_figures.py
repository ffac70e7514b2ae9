"""Are figures kept, dropped and shown as they were measured, and do the shipped denoisers keep their promises?"""

from dataclasses import replace

import pytest
from measured import figure

from models.cards import training_of
from models.catalogue import CATALOGUE, DESCRIBED
from models.errors import UnknownDenoiser
from models.figures import (
    FIGURES_FILE,
    GAUSSIAN,
    REAL,
    add_figures,
    fingerprint,
    fullest,
    read_figures,
    read_published,
    write_figures,
)
from models.noise import noise_named
from models.tables import BEGIN, END, current_figures, over_baseline_db, put_into, tables

NETWORKS = [name for name, spec in CATALOGUE.items() if spec.weights]
WORST_GAIN_DB = 5.0  # at level 25 or 30 of Gaussian noise


@pytest.fixture
def file(tmp_path):
    return tmp_path / "figures.csv"


def current(name: str) -> str:
    return fingerprint(run.sha256 for run in training_of(DESCRIBED[name]))


def test_figures_read_back_as_they_were_written(file):
    full = figure(
        "dncnn",
        ad=0.0263,
        restored_8bit_db=30.9,
        ms_per_megapixel=458.2,
        threads=1,
        machine='a CPU, "fast" avx2',
    )
    add_figures([full, figure("nlm", noise=REAL, weights="")], file)
    assert read_figures(file) == (full, figure("nlm", noise=REAL, weights=""))


def test_the_file_is_sorted_whatever_order_figures_come_in(file):
    several = [
        figure(name, data=data, noise=noise)
        for name in ("dncnn", "nlm")
        for data in ("cbsd68", "kodak24")
        for noise in ("gaussian-5", "gaussian-15", "gaussian-100", "mixed", "real", "signal-low")
    ]
    write_figures(several, file)
    content = file.read_text()
    write_figures(reversed(several), file)
    assert file.read_text() == content
    assert [one.noise for one in read_figures(file)[:4]] == ["gaussian-5", "gaussian-15", "gaussian-100", "mixed"]


def test_a_newer_figure_takes_the_place_of_an_older_one_of_the_same_key_alone(file):
    add_figures([figure("dncnn"), figure("dncnn", pictures=68), figure("dncnn", backend="torch fp32")], file)
    add_figures([figure("dncnn", restored_db=32.0)], file)
    kept = {(one.pictures, one.backend): one.restored_db for one in read_figures(file)}
    assert kept == {(4, "openvino bf16"): 32.0, (68, "openvino bf16"): 31.0, (4, "torch fp32"): 31.0}


def test_figures_of_other_weights_go_when_the_new_ones_are_measured(file):
    add_figures([figure("dncnn", data="old"), figure("fitvnet", data="old")], file)
    add_figures([figure("dncnn", weights="new")], file)
    assert {(one.denoiser, one.data) for one in read_figures(file)} == {("dncnn", "cbsd68"), ("fitvnet", "old")}


def test_a_denoiser_is_set_beside_nlm_on_the_same_pictures_alone():
    ours = figure("dncnn", restored_db=31.0)
    others = [
        figure("nlm", restored_db=28.5),
        figure("nlm", pictures=68, restored_db=20.0),
        figure("nlm", noise="mixed", restored_db=20.0),
        figure("bm3d", restored_db=30.0),
    ]
    assert over_baseline_db(ours, [ours, *others]) == 2.5
    assert over_baseline_db(ours, [ours, *others[1:]]) is None


def test_of_several_figures_the_one_over_the_most_pictures_is_shown():
    several = [figure("dncnn"), figure("dncnn", pictures=68), figure("dncnn", pictures=17)]
    assert fullest(several) == {("dncnn", "cbsd68", "gaussian-25"): several[1]}


# --- the tables


def test_a_row_shows_psnr_cost_and_what_is_gained_over_nlm():
    ours = [
        figure(
            "fitvnet-spatial",
            weights=current("fitvnet-spatial"),
            noise=f"{GAUSSIAN}{level}",
            restored_db=restored,
            ms_per_megapixel=810.4,
            threads=1,
        )
        for level, restored in ((15, 33.71), (25, 31.01), (50, 27.62))
    ]
    baseline = [replace(one, denoiser="nlm", weights="", restored_db=one.restored_db - 2) for one in ours[1:]]
    shown = tables([*ours, *baseline], [])
    assert "| denoiser | M parameters | cbsd68 (4) | kodak24 |" in shown
    assert "| **fitvnet-spatial** | 1.10 | 33.71 / 31.01 / 27.62 |  |  |  | +2.00 | 810 | measured |" in shown
    assert "| **nlm** |  | - / 29.01 / 25.62 |" in shown


def test_a_figure_over_fewer_pictures_says_so():
    weights = current("dncnn")
    shown = tables([figure("dncnn", weights=weights, pictures=17), figure("nlm", weights="", pictures=68)], [])
    assert "| - / 31.00 / - (17) |" in shown
    assert "cbsd68 (68)" in shown


def test_figures_of_weights_that_are_gone_and_of_unknown_denoisers_are_not_shown():
    gone = [figure("dncnn", weights="gone"), figure("nobody"), figure("pridnet.paper", weights="never there")]
    assert "**" not in tables(gone, [])


def test_published_figures_on_other_pictures_are_marked_and_their_sources_listed():
    theirs = [one for one in read_published() if one.method == "DRUNet" and one.data in ("cbsd68", "kodak24")]
    shown = tables([figure("nlm", weights="", pictures=68), figure("nlm", weights="", data="kodak24")], theirs)
    assert "| DRUNet | 32.64 | 34.30 / 31.69 / 28.51 | 35.31 / 32.89 / 29.86 ° |" in shown
    assert "1. cszn/DPIR\n" in shown


def test_the_tables_take_their_place_in_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    put_into(page)
    assert page.read_text() == f"before\n{BEGIN}\n\n{tables()}\n\n{END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(UnknownDenoiser, match="no place for the tables"):
        put_into(page)


def test_what_is_published_is_whole():
    published = read_published()
    assert len({(one.method, one.data, one.noise, one.note) for one in published}) == len(published)
    for one in published:
        assert one.source
        assert len(one.psnr_db) == max(1, len(one.levels))
        assert len(one.ssim) in (0, len(one.psnr_db))
        assert all(value is None or 10 < value < 50 for value in one.psnr_db)
        assert all(value is None or 0.3 < value < 1 for value in one.ssim)
        assert (one.noise == "gaussian") == bool(one.levels)
    (drunet,) = (one for one in published if (one.method, one.data) == ("DRUNet", "cbsd68"))
    assert drunet.at("gaussian-25") == (31.69, 0.8963)
    assert drunet.at("gaussian-30") == drunet.at("mixed") == (None, None)


# --- what was measured of what is shipped


def test_the_shipped_figures_are_in_order_and_of_known_denoisers_and_noises(tmp_path):
    figures = read_figures()
    write_figures(figures, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == FIGURES_FILE.read_bytes()
    assert {one.denoiser for one in figures} <= set(DESCRIBED)
    assert all(one.noise == REAL or noise_named(one.noise) for one in figures)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_shipped_network_beats_nlm_on_gaussian_noise(name):
    """One that was taught another noise alone must do so on that, and on Gaussian noise up to level 30."""
    figures, taught = current_figures(read_figures()), CATALOGUE[name].taught
    noises = {one.noise for one in figures if one.noise.startswith(GAUSSIAN)}
    if "gaussian" not in taught:
        noises = {*taught, "gaussian-15", "gaussian-25", "gaussian-30"}
    margins = {
        (one.data, one.noise, one.pictures): over_baseline_db(one, figures)
        for one in figures
        if one.denoiser == name and one.noise in noises
    }
    compared = {where: margin for where, margin in margins.items() if margin is not None}
    assert compared, "measure nlm on the same data"
    assert not {where: margin for where, margin in compared.items() if margin <= 0}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_shipped_network_takes_most_of_the_noise_out(name):
    gains = [
        one.gain_db
        for one in current_figures(read_figures())
        if one.denoiser == name and one.noise in ("gaussian-25", "gaussian-30")
    ]
    assert gains, "measure it at level 25"
    assert min(gains) > WORST_GAIN_DB

"""What was measured, beside what papers and peers publish, as the Markdown tables of docs/models.md.

`quietframe models --markdown` prints them, `--into docs/models.md` puts them there between the two marks.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from models.cards import training_of
from models.catalogue import DESCRIBED, DenoiserSpec
from models.errors import UnknownDenoiser
from models.figures import GAUSSIAN, REAL, Figure, Published, fingerprint, fullest, read_figures, read_published
from models.noise import NOISES

BEGIN, END = "<!-- quietframe models --markdown -->", "<!-- end of the tables -->"
PICTURES = ("cbsd68", "kodak24", "mcmaster", "urban100")
LEVELS = ("15", "25", "50")  # that nearly all papers print
ALL_LEVELS = ("15", "25", "35", "45", "50", "55")
PAIRS = ("cc15", "polyu-test")
OTHER_PAIRS = ("sidd", "dnd", "sidd+renoir+nind at 256x256", "renoir t3i")
CLIPS = ("video", "clips")
OTHER_CLIPS = {"davis test-dev": "10/20/30/40/50", "set8": "10/20/30/40/50", "vimeo700": "15/25/35/45/55"}
OTHER_NOISE = tuple(NOISES)
BASELINE = "nlm"
ELSEWHERE = "°"  # marks figures on other pictures than ours

Best = dict[tuple[str, str, str], Figure]


def tables(figures: Sequence[Figure] | None = None, published: Sequence[Published] | None = None) -> str:
    """All tables, each under its heading. Figures of weights that are no longer there are left out."""
    current = current_figures(read_figures() if figures is None else figures)
    best = fullest(current)
    others = read_published() if published is None else published
    sources = _Sources()
    sections = {
        "Gaussian noise on pictures": _gaussian(best, current, others, sources),
        "Every level on cbsd68": _every_level(best),
        "Noise of cameras": _real(best, others, sources),
        "Noise of cameras, other pairs": _real_elsewhere(others, sources),
        "Video": _video(best, current),
        "Video elsewhere": _video_elsewhere(others, sources),
        "Other noise": _other_noise(best),
        "Other noise elsewhere": _other_noise_elsewhere(others, sources),
        "Sources": sources.listed(),
    }
    return "\n\n".join(f"### {heading}\n\n{table}" for heading, table in sections.items() if table)


def put_into(page: Path) -> None:
    """Replace what stands between the marks.

    Raises:
        UnknownDenoiser: the page has no such marks.
    """
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise UnknownDenoiser(f"{page} has no place for the tables: {BEGIN} and {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}")


def over_baseline_db(figure: Figure, figures: Iterable[Figure]) -> float | None:
    """How much better than `nlm` a denoiser restores the same pictures with the same noise; None if that is unknown."""
    same = [
        other
        for other in figures
        if other.denoiser == BASELINE
        and (other.data, other.noise, other.pictures, other.frames)
        == (figure.data, figure.noise, figure.pictures, figure.frames)
    ]
    return figure.restored_db - same[0].restored_db if same else None


def current_figures(figures: Iterable[Figure]) -> list[Figure]:
    """Those of the weights that are there now."""
    weights: dict[str, str | None] = {}
    for name in {figure.denoiser for figure in figures} & set(DESCRIBED):
        try:
            weights[name] = fingerprint(run.sha256 for run in training_of(DESCRIBED[name]))
        except UnknownDenoiser:
            weights[name] = None
    return [figure for figure in figures if figure.weights == weights.get(figure.denoiser)]


class _Sources:
    """Numbers what figures were taken from, in the order in which they are met."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, lines: Iterable[Published]) -> str:
        named = dict.fromkeys(one for line in lines for one in line.source.replace("; SSIM", ",").split(", "))
        return " ".join(f"[{self._numbers.setdefault(one, len(self._numbers) + 1)}]" for one in named)

    def listed(self) -> str:
        return "\n".join(f"{number}. {source}" for source, number in self._numbers.items())


def _gaussian(best: Best, current: Sequence[Figure], others: Sequence[Published], sources: _Sources) -> str:
    """Triples at 15 / 25 / 50; ours with the best first, then others."""
    header = ["denoiser", "M parameters", *(_counted(best, data) for data in PICTURES), "over nlm", "ms/MP", "source"]
    noises = [GAUSSIAN + level for level in LEVELS]
    rows = [["noisy input", "", *(" / ".join(_noisy(best, data, noise) for noise in noises) for data in PICTURES)]]
    for name in _measured(best, PICTURES, GAUSSIAN):
        cells = [_slashed(best, name, data, noises) for data in PICTURES]
        rows.append(
            [f"**{name}**", _size(name), *cells, _over(best, current, name, PICTURES), _cost(best, name), "measured"]
        )
    for method, lines in _methods(others, PICTURES, "gaussian").items():
        cells = [_triple(lines.get(data), _pictures(best, data)) for data in PICTURES]
        rows.append([method, _parameters(lines.values()), *cells, "", "", sources.of(lines.values())])
    return _table(header, rows)


def _every_level(best: Best) -> str:
    data, noises = PICTURES[0], [GAUSSIAN + level for level in ALL_LEVELS]
    rows = [["noisy input", *(_noisy(best, data, noise) for noise in noises)]]
    rows += [
        [f"**{name}**", *(_cell(best, name, data, noise, _psnr_8bit_ssim) for noise in noises)]
        for name in _measured(best, (data,), GAUSSIAN)
    ]
    return _table(["PSNR (8-bit input) SSIM", *ALL_LEVELS], rows)


def _real(best: Best, others: Sequence[Published], sources: _Sources) -> str:
    rows = [["noisy input", *(_noisy(best, data, REAL) for data in PAIRS)]]
    for name in _measured(best, PAIRS, REAL):
        cells = [_cell(best, name, data, REAL, _psnr_ssim) for data in PAIRS]
        rows.append([f"**{name}**", *cells, _cost(best, name, PAIRS), "measured"])
    for method, lines in _methods(others, PAIRS, REAL).items():
        cells = [_one(lines.get(data), _pictures(best, data)) for data in PAIRS]
        rows.append([method, *cells, "", sources.of(lines.values())])
    return _table(["PSNR / SSIM", *(_counted(best, data) for data in PAIRS), "ms/MP", "source"], rows)


def _real_elsewhere(others: Sequence[Published], sources: _Sources) -> str:
    rows = []
    for method, lines in _methods(others, OTHER_PAIRS, REAL).items():
        cells = [_one(lines.get(data)) for data in OTHER_PAIRS]
        rows.append([method, _parameters(lines.values()), *cells, _notes(lines.values()), sources.of(lines.values())])
    return _table(["PSNR / SSIM", "M parameters", *OTHER_PAIRS, "note", "source"], rows)


def _video(best: Best, current: Sequence[Figure]) -> str:
    """Every noise that a clip was measured with."""
    measured = {(data, noise) for _name, data, noise in best if data in CLIPS}
    columns = sorted(measured, key=lambda column: (CLIPS.index(column[0]), _level(column[1]), column[1]))
    header = ["PSNR / SSIM / AD", *(f"{_counted(best, data)}, {_short(noise)}" for data, noise in columns)]
    rows = [["noisy input", *(_noisy(best, data, noise) for data, noise in columns), "", ""]]
    for name in _measured(best, CLIPS, ""):
        cells = [_cell(best, name, data, noise, _psnr_ssim_ad) for data, noise in columns]
        rows.append([f"**{name}**", *cells, _over(best, current, name, CLIPS), _cost(best, name, CLIPS)])
    return _table([*header, "over nlm", "ms/MP"], rows)


def _video_elsewhere(others: Sequence[Published], sources: _Sources) -> str:
    header = ["PSNR", "M parameters", *(f"{data}, {levels}" for data, levels in OTHER_CLIPS.items()), "note", "source"]
    rows = []
    for method, lines in _methods(others, (*OTHER_CLIPS, *CLIPS), "gaussian").items():
        cells = [
            " / ".join(_decibels(lines[data].at(GAUSSIAN + level)[0]) for level in levels.split("/"))
            if data in lines
            else ""
            for data, levels in OTHER_CLIPS.items()
        ]
        on_ours = [
            f"{_decibels(line.psnr_db[0])} on our {data} at {line.levels[0]}"
            for data, line in lines.items()
            if data in CLIPS
        ]
        told = "; ".join([*on_ours, *filter(None, [_notes(lines.values())])])
        rows.append([method, _parameters(lines.values()), *cells, told, sources.of(lines.values())])
    return _table(header, rows)


def _other_noise(best: Best) -> str:
    sets = (*PICTURES, *CLIPS)
    measured = {(data, noise) for _name, data, noise in best if noise in OTHER_NOISE and data in sets}
    columns = sorted(measured, key=lambda column: (OTHER_NOISE.index(column[1]), sets.index(column[0])))
    rows = [["noisy input", *(_noisy(best, data, noise) for data, noise in columns)]]
    rows += [
        [f"**{name}**", *(_cell(best, name, data, noise, _psnr_ssim) for data, noise in columns)]
        for name in sorted({name for name, data, noise in best if (data, noise) in measured})
    ]
    return _table(["PSNR / SSIM", *(f"{_counted(best, data)}, {noise}" for data, noise in columns)], rows)


def _other_noise_elsewhere(others: Sequence[Published], sources: _Sources) -> str:
    lines = {(line.method, line.data, line.noise): line for line in others if line.noise in OTHER_NOISE}
    columns = sorted({(data, noise) for _method, data, noise in lines}, key=lambda column: (column[0], column[1]))
    rows = []
    for method in dict.fromkeys(method for method, _data, _noise in lines):
        own = {(data, noise): line for (of, data, noise), line in lines.items() if of == method}
        cells = [_one(own.get(column)) for column in columns]
        rows.append([method, *cells, _notes(own.values()), sources.of(own.values())])
    return _table(["PSNR / SSIM", *(f"{data}, {noise}" for data, noise in columns), "note", "source"], rows)


def _measured(best: Best, sets: Sequence[str], noise: str) -> list[str]:
    """Who was measured on any of the sets with a noise of that kind; the best gain first."""
    gains: dict[str, list[float]] = {}
    for (name, data, of), figure in best.items():
        if data in sets and of.startswith(noise):
            gains.setdefault(name, []).append(figure.gain_db)
    return sorted(gains, key=lambda name: (-sum(gains[name]) / len(gains[name]), name))


def _methods(others: Sequence[Published], sets: Sequence[str], noise: str) -> dict[str, dict[str, Published]]:
    """By method and test set what is published of these sets with that noise, as the file has it."""
    found: dict[str, dict[str, Published]] = {}
    for line in others:
        if line.data in sets and line.noise == noise:
            found.setdefault(line.method, {})[line.data] = line
    return found


def _pictures(best: Best, data: str) -> int:
    return max((figure.pictures for figure in best.values() if figure.data == data), default=0)


def _counted(best: Best, data: str) -> str:
    pictures = _pictures(best, data)
    return f"{data} ({pictures})" if pictures else data


def _noisy(best: Best, data: str, noise: str) -> str:
    """Of the figure over the most pictures."""
    there = [figure for (_name, of, with_), figure in best.items() if (of, with_) == (data, noise)]
    return f"{max(there, key=lambda one: one.pictures).noisy_db:.2f}" if there else ""


def _slashed(best: Best, name: str, data: str, noises: Sequence[str]) -> str:
    there = {noise: best[name, data, noise] for noise in noises if (name, data, noise) in best}
    if not there:
        return ""
    fewer = {one.pictures for one in there.values()} - {_pictures(best, data)}
    of = f" ({', '.join(map(str, sorted(fewer)))})" if fewer else ""
    return " / ".join(_decibels(there[noise].restored_db if noise in there else None) for noise in noises) + of


def _cell(best: Best, name: str, data: str, noise: str, text: Callable[[Figure], str]) -> str:
    figure = best.get((name, data, noise))
    if figure is None:
        return ""
    return text(figure) + ("" if figure.pictures == _pictures(best, data) else f" ({figure.pictures})")


def _psnr_ssim(figure: Figure) -> str:
    return f"{figure.restored_db:.2f} / {figure.ssim:.4f}"


def _psnr_ssim_ad(figure: Figure) -> str:
    return _psnr_ssim(figure) + ("" if figure.ad is None else f" / {figure.ad:.4f}")


def _psnr_8bit_ssim(figure: Figure) -> str:
    rounded = "" if figure.restored_8bit_db is None else f" ({figure.restored_8bit_db:.2f})"
    return f"{figure.restored_db:.2f}{rounded} {figure.ssim:.4f}"


def _over(best: Best, current: Sequence[Figure], name: str, sets: Sequence[str]) -> str:
    """The least that a denoiser gains over `nlm`, over all sets and levels of Gaussian noise."""
    margins = [
        over_baseline_db(figure, current)
        for (of, data, noise), figure in best.items()
        if of == name and data in sets and noise.startswith(GAUSSIAN) and name != BASELINE
    ]
    known = [margin for margin in margins if margin is not None]
    return f"{min(known):+.2f}" if known else ""


def _cost(best: Best, name: str, sets: Sequence[str] = PICTURES) -> str:
    """The median over what was measured, and the threads it ran on."""
    there = [
        one
        for (of, data, _noise), one in best.items()
        if of == name and data in sets and one.ms_per_megapixel is not None
    ]
    if not there:
        return ""
    middle = sorted(there, key=lambda one: one.ms_per_megapixel or 0)[len(there) // 2]
    return f"{middle.ms_per_megapixel:.0f}" + (f" ({middle.threads} threads)" if middle.threads != 1 else "")


def _size(name: str) -> str:
    spec: DenoiserSpec | None = DESCRIBED.get(name)
    return f"{spec.parameters / 1e6:.2f}" if spec and spec.weights else ""


def _parameters(lines: Iterable[Published]) -> str:
    return next((f"{line.parameters_m:g}" for line in lines if line.parameters_m is not None), "")


def _triple(line: Published | None, pictures: int) -> str:
    if line is None:
        return ""
    return " / ".join(_decibels(line.at(GAUSSIAN + level)[0]) for level in LEVELS) + _elsewhere(line, pictures)


def _one(line: Published | None, pictures: int | None = None) -> str:
    if line is None:
        return ""
    alike = line.ssim[0] if line.ssim else None
    told = "" if alike is None else f" / {alike:g}"
    return _decibels(line.psnr_db[0]) + told + ("" if pictures is None else _elsewhere(line, pictures))


def _elsewhere(line: Published, pictures: int) -> str:
    """Marks a figure on other pictures than ours, such as the whole of a set that we have a part of."""
    return "" if line.pictures == pictures else f" {ELSEWHERE}"


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _notes(lines: Iterable[Published]) -> str:
    return "; ".join(dict.fromkeys(note for line in lines for note in line.note.split("; ") if note))


def _level(noise: str) -> float:
    level = noise.removeprefix(GAUSSIAN)
    return float(level) if level != noise else float("inf")


def _short(noise: str) -> str:
    return noise.removeprefix(GAUSSIAN)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join([*line, *[""] * (len(header) - len(line))]) + " |" for line in lines)

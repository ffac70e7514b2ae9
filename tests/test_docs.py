"""The docs do not drift from the code."""

import re
from pathlib import Path

from models.tables import BEGIN, END, tables
from service.settings import Settings

ROOT = Path(__file__).parent.parent


def test_every_setting_stands_in_the_operators_guide_with_its_default():
    rows = dict(
        re.findall(r"^\| `QUIETFRAME_(\w+)` \| (.+?) \|", (ROOT / "docs" / "operating.md").read_text(), re.MULTILINE)
    )
    assert set(rows) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        told = rows[name.upper()].strip("`")
        assert told == "none" if field.default is None else float_or_text(told) == float_or_text(str(field.default))


def float_or_text(text):
    try:
        return float(text)
    except ValueError:
        return text


def test_the_tables_in_the_docs_are_made_of_what_was_measured():
    told = (ROOT / "docs" / "models.md").read_text().split(BEGIN)[1].split(END)[0]
    assert told.strip() == tables(), "run: quietframe models --into docs/models.md"


def test_links_in_the_docs_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_architecture_names_every_part_of_the_service_and_none_that_is_gone():
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"\b(?:service|trtbuild|models)(?:\.\w+)+", page))
    for name in named:
        place = ROOT.joinpath(*name.split("."))
        assert place.is_dir() or place.with_suffix(".py").exists(), f"{name} is not there"
    parts = {
        path.stem for path in (ROOT / "service").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    told = {name.split(".")[1] for name in named if name.startswith("service.")}
    assert parts - told == {"__init__", "__main__"}

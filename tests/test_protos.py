"""Are the protos as others expect protos to be? Asked of buf, which reads nothing but our files."""

import subprocess
import sysconfig
from pathlib import Path

import pytest

from service.rpc.protos import PROTOS

BUF = Path(sysconfig.get_path("scripts")) / "buf"  # from the wheel `buf-bin`


def buf(*arguments):
    return subprocess.run([BUF, *arguments], cwd=PROTOS, capture_output=True, text=True, timeout=60)


def test_the_protos_are_named_and_commented_as_is_usual():
    ran = buf("lint")
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr


def test_our_proto_is_laid_out_as_the_formatter_does():
    ran = buf("format", "--diff", "--exit-code", "--path", "quietframe")
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            'syntax = "proto3";\n\npackage quietframe.v1;\n\nmessage Said {\n  int32 aField = 1;\n}\n',
            "lower_snake_case",
        ),
        ('syntax = "proto3";\n\npackage quietframe.v1;\n\nmessage Said {}\n', "comment"),
    ],
)
def test_the_linter_would_say_so(tmp_path, text, complaint):
    (tmp_path / "buf.yaml").write_text((PROTOS / "buf.yaml").read_text())
    (tmp_path / "quietframe" / "v1").mkdir(parents=True)
    (tmp_path / "quietframe" / "v1" / "said.proto").write_text(text)
    ran = subprocess.run([BUF, "lint"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode != 0
    assert complaint in ran.stdout

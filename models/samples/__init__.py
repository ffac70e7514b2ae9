"""Which pictures ship with us? One: NASA's portrait of Eileen Collins, 512x512, in the public domain."""

from pathlib import Path

PORTRAIT = Path(__file__).parent / "portrait.png"

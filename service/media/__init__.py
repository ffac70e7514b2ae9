"""Images and video in and out: what a file is, its pixels, and a file made of pixels again."""

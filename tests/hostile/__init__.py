"""Files meant to hurt, made by scripts: each a few bytes to a few megabytes, and what the service must answer."""

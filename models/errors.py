"""What can go wrong with a denoiser before any pixel is touched."""


class QuietframeError(Exception):
    """The root of every error that Quietframe raises on purpose; its message gives the value and the bound."""


class UnknownDenoiser(QuietframeError):
    """No catalogue entry, recipe or weights go by this name."""


class NeedsExtra(QuietframeError):
    """An optional dependency is not installed; the message says which command installs it."""

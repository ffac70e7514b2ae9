"""What must a key allow, for which call over HTTP?"""

from service.access.keys import Scope

# What tells nobody anything about anybody's pictures. Whatever is not in it needs a key: a call that is added later,
# and forgotten here, is a closed door and not an open one.
OPEN = frozenset(
    {
        "/",
        "/livez",
        "/readyz",
        "/docs",
        "/openapi.json",
        "/v2",
        "/v2/",
        "/v2/health/live",
        "/v2/health/ready",
    }
)
ASKING = {"GET", "HEAD", "OPTIONS"}


def right_for(method: str, path: str) -> Scope | None:
    """What a key must allow; None where none is needed."""
    if path == "/metrics" or path == "/admin" or path.startswith("/admin/"):
        return Scope.ADMIN
    if path in OPEN or path.startswith(("/docs/", "/web/")):  # the pages' own scripts and styles
        return None
    # Asked by POST, and only asked.
    return Scope.READ if method in ASKING or path == "/v2/repository/index" else Scope.SUBMIT

"""How many bytes a request body may have: counted as they arrive, whatever the headers say."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import problems


class BodyLimit:
    """Refuses a body that announces too many bytes, and cuts one off that sends them unannounced."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if announced.isdigit() and int(announced) > self._max_bytes:
            # The rest of the body stays unread, so the connection is of no more use.
            refusal = problems.respond(
                problems.plain(413, self._detail(int(announced))), scope["path"], {"Connection": "close"}
            )
            await refusal(scope, receive, send)
            return

        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > self._max_bytes:
                raise problems.Refused(413, self._detail(arrived), headers={"Connection": "close"})
            return message

        await self._app(scope, counted, send)

    def _detail(self, size: int) -> str:
        return f"the request body has {size} bytes or more; at most {self._max_bytes} are accepted"

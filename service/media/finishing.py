"""What a writer does at the end of its `with`: finish what went well, throw away what did not."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Finishing(ABC):
    """A context manager that closes itself, or aborts if the block raised."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    @abstractmethod
    def close(self) -> None:
        """Finish the file."""

    @abstractmethod
    def abort(self) -> None:
        """Leave nothing behind."""

"""The queue as a caller may see it: of others' jobs it knows nothing.

Whichever door asks for a job, asks here; that is the one place where it is looked at whose it is. To look like a job
that never was, one of somebody else's is refused by the very error that an unknown id gets.
"""

from service.access.callers import Caller, current_caller
from service.access.keys import KeyRing
from service.broker.queue import Entries, Names, QueueClient, Records, unknown_job
from service.job import JobState, Record
from service.settings import Settings


class OwnJobs(QueueClient):
    """For the API process. Outside of any call nobody asks, and nobody's is no job."""

    def __init__(self, url: str, settings: Settings, ring: KeyRing | None) -> None:
        super().__init__(url, settings)
        self._ring = ring

    async def get(self, job_id: str) -> Record:
        record = await super().get(job_id)
        caller = current_caller()
        if caller is None or not _sees(caller, record):
            raise unknown_job(job_id)
        return record

    async def list(
        self, state: JobState | None, limit: int, cursor: str | None, *, owner: str | None = None
    ) -> tuple[Records, str | None]:
        caller = current_caller()
        if caller is None:
            return [], None
        return await super().list(state, limit, cursor, owner=owner if caller.sees_all else caller.owner)

    async def cancel(self, job_id: str) -> Record:
        await self.get(job_id)
        return await super().cancel(job_id)

    async def remove(self, job_id: str) -> Names:
        await self.get(job_id)
        return await super().remove(job_id)

    async def replay(self, job_id: str) -> Record:
        await self.get(job_id)
        return await super().replay(job_id)

    async def _read_events(self, job_id: str, after: str, block_s: float) -> Entries:
        """What follows a job for hours asks this every other second: a key that was revoked ends it."""
        caller = current_caller()
        if self._ring is not None and caller is not None and caller.key is not None:
            self._ring.check(caller.key.id)
        return await super()._read_events(job_id, after, block_s)


def _sees(caller: Caller, record: Record) -> bool:
    return caller.sees_all or (caller.owner is not None and record.job.owner == caller.owner)

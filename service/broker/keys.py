"""Which keys are there in Redis, what is in each, who writes it, and how long does it live?

All names stand behind `PREFIX`. The scripts build keys from it by themselves, so all keys must be on one server (a
primary with its replicas; not a cluster that splits them).

| key            | type   | holds                                             | written by                    | lives |
| -------------- | ------ | ------------------------------------------------- | ----------------------------- | ----- |
| `work:{lane}`  | stream | an entry for each job that waits or runs, `job` = | put, replay, requeue, divide, | until |
|                |        | its id, `compat` = what it has in common with     | part_done, undivide,          | the   |
|                |        | jobs that could be done along with it; the        | give_back add; claim, settle, | end   |
|                |        | pending entries of group `workers` are the leases | requeue, give_back and those  |       |
|                |        |                                                   | of parts drop                 |       |
| `void:{lane}`  | set    | ids of entries in `work:{lane}` whose job was     | cancel adds; claim, give_back | empty |
|                |        | cancelled, or its video ended, while it waited,   | drop                          |       |
|                |        | until it is skipped                               |                               |       |
| `job:{id}`     | hash   | the record; its fields are below                  | every script                  | R     |
| `job:{id}.{n}` | hash   | part `n` of a video, with the same fields as far  | divide, claim, report, renew, | until |
|                |        | as they apply, and `part` (JSON) and `done`       | requeue, part_done; whatever  | its   |
|                |        | (frames told of so far)                           | ends the video drops it, but  | end,  |
|                |        |                                                   | a failed one keeps what was   | or    |
|                |        |                                                   | done for its replay           | R     |
| `divided:`     | set    | ids of the lane's videos whose parts are not all  | divide adds; whatever ends    | empty |
| `{lane}`       |        | done and joined: they have no entry on its stream | the parts drops               |       |
| `events:{id}`  | stream | `event` = `state`, `progress` or `preview`,       | every script that moves       | R     |
|                |        | `data` = JSON; the last 256 or a few more         | a job; report, preview        |       |
| `jobs`         | zset   | ids of all jobs, score 0, as ids sort by birth    | put, expire, remove           | ever  |
| `jobs:{state}` | zset   | ids of the jobs in that state, score 0            | every script that moves a job | ever  |
| `jobs@{owner}` | zset   | the same two, of the jobs of one holder of an API | as those                      | while |
| `jobs:{state}` |        | key alone                                         |                               | he    |
| `@{owner}`     |        |                                                   |                               | has   |
| `owners`       | hash   | id -> holder, of jobs that came with a key        | put; expire, remove drop      | ever  |
| `blob:{name}`  | set    | ids of the jobs and parts that use the blob       | put, settle, part_done,       | empty |
|                |        |                                                   | preview; whatever ends them   |       |
| `idem:{hash}`  | hash   | `job` and `fingerprint` of an idempotency key     | put                           | 24 h  |
| `expiring`     | zset   | ids of final jobs; score: when the result is to   | settle, cancel, claim add;    | ever  |
|                |        | be deleted, and after that, when the record is    | expire, replay, remove        |       |
| `dead`         | stream | dead letters: `job`, `lane`, `reason`, `worker`,  | claim, settle add; replay,    | ever  |
|                |        | `attempts`                                        | expire, remove drop           |       |
| `hooks`        | stream | an entry for each message that is due, `hook` =   | finish, hook_due add;         | until |
|                |        | its id; the pending entries of group `workers`    | hook_claim, hook_settle drop  | the   |
|                |        | are the tries under way                           |                               | end   |
| `hook:{id}`    | hash   | a message: the copy of a final record, and how    | finish, the hook scripts      | until |
|                |        | its delivery stands; its fields are below         |                               | then  |
| `hooks:due`    | zset   | ids of messages that pause; score: when they are  | hook_settle adds; hook_due    | empty |
|                |        | due again                                         | drops                         |       |
| `hooks:dead`   | stream | messages given up: `hook`, `job`, `attempts`,     | hook_claim, hook_settle       | ever  |
|                |        | `reason`; the last 10 000 or a few more           |                               |       |
| `load`         | hash   | lane -> pixels accepted and not done yet          | whatever starts or ends a job | ever  |
| `speed`        | hash   | lane -> pixels per second of one slot of a worker | settle, part_done             | ever  |
| `counters`     | hash   | `{name}:{lane}` = number; names in `COUNTERS`     | most scripts                  | ever  |
| `quota:`       | string | when the bucket is full again: ms since 1970; no  | spend                         | until |
| `{policy}:`    |        | key: it is full. `payer` is the holder of an API  |                               | then  |
| `{payer}`      |        | key, or an address                                |                               |       |
| `worker:{id}`  | string | a worker's card, JSON                             | its heartbeat                 | L     |
| `workers`      | zset   | ids of workers; score: last heartbeat             | heartbeat; retire,            | ever  |
|                |        |                                                   | forget_workers drop           |       |
| `janitor`      | string | somebody sweeps, or has just swept                | janitor                       | 30 s  |

R: until `record_ttl_s` after the result expired. L: one `lease_ttl_s`. Empty ones cost nothing.

Fields of `job:{id}`: `job` (JSON as it was put), `lane`, `blobs` (names, a blank between; no field once its time to
keep them is over), `state`, `attempts` (those that count), `fence` (raised at every claim, never lowered), `owner`
(worker), `claim` (token of the claim that made it the owner), `entry` (id of its entry on the work stream),
`queued_at`, `claimed_at`, `started_at`, `finished_at`, `expires_at` (seconds since 1970, the server's clock),
`progress`, `outcome`, `error` (JSON), `last_error`, `settled` (fence and verb of the last settling, so that a repeated
one is known), `progress_ms` (when progress was last published), `dead` (id of its dead letter),
`pixels` (in all), `pixels_left` (its share of `load`), `compat`, `preview` (JSON). Of a video that was divided also:
`parts`, `parts_queued`, `parts_done` (numbers of them), `frames_done`, `frames_total`, `divided_at`, `worst` (attempts
of its most tried step), `whole` (1: it turned out indivisible), `entry_lane` (where its entry is,
if not in its own lane), `frames_kept` (of parts that were done before it was replayed). Such a video runs without an
owner while its parts are done, and is queued again to be joined.

A message's id is `{job}.{number}`; the job's field `hooks` counts how many it had. Fields of `hook:{id}`: `job`,
`lane`, `record` (the job's hash as JSON), `attempts`, `entry` (id of its entry in `hooks`; none while it pauses),
`claim` (token of the try under way), `last_error`.

A running job is its owner's while `owner` and `fence` both fit; every script of a worker asks that first.
"""

import hashlib

from service.job import JobState, Lane

PREFIX = "quietframe:"
GROUP = "workers"
IDEMPOTENCY_TTL_S = 24 * 3600

COUNTERS = {
    "accepted": "jobs put, and parts of videos queued",
    "claimed": "leases given",
    "redelivered": "leases given on a job that somebody had tried before",
    "released": "leases handed back untried",
    "retried": "tries that failed and were not the last",
    "lease_lost": "reports and settlings refused because the job was another's",
    "dead_lettered": "jobs given up",
    "succeeded": "jobs that ended so",
    "failed": "jobs that ended so",
    "cancelled": "jobs that ended so",
    "expired": "results deleted for age",
    "wait_seconds": "sum, from entering the lane to the lease",
    "run_seconds": "sum, from the last lease to the end",
    "webhooks_posted": "messages put into the outbox, for jobs that ended",
    "webhooks_delivered": "messages that a receiver took",
    "webhooks_retried": "messages that a receiver did not take and that are sent again",
    "webhooks_dead": "messages given up",
}


def work(lane: Lane) -> str:
    """The stream that scaling rules look at: its length is what waits, runs, and was cancelled but not yet skipped.

    Of a video done in parts, `video.part` holds twice as many entries as there are workers, and at least four.
    """
    return f"{PREFIX}work:{lane}"


def job(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


def events(job_id: str) -> str:
    return f"{PREFIX}events:{job_id}"


def jobs(state: JobState | None, owner: str | None = None) -> str:
    return f"{PREFIX}jobs" + (f":{state}" if state else "") + (f"@{owner}" if owner else "")


def blob(name: str) -> str:
    return f"{PREFIX}blob:{name}"


def idempotency(key: str, owner: str | None = None) -> str:
    """What stands behind `idem:`. Hashed: a client's key may be of any length and hold any character.

    Two holders of API keys who chose the same one mean two things: a blank stands in no client's key.
    """
    return hashlib.sha256((f"{owner} {key}" if owner else key).encode()).hexdigest()


def worker(worker_id: str) -> str:
    return f"{PREFIX}worker:{worker_id}"


COUNTER_HASH = f"{PREFIX}counters"
DEAD = f"{PREFIX}dead"
HOOKS = f"{PREFIX}hooks"
HOOKS_DEAD = f"{PREFIX}hooks:dead"
WORKERS = f"{PREFIX}workers"
JANITOR = f"{PREFIX}janitor"

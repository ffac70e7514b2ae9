"""How jobs and wishes look on the wire: between our types and the messages of denoiser.proto."""

from google.protobuf.json_format import ParseDict

from service.job import JobState, Options, Record, document_of
from service.rpc.generated.quietframe.v1 import denoiser_pb2 as pb


def job_of(record: Record) -> pb.Job:
    """The job document, field for field."""
    document = document_of(record).model_dump(mode="json", exclude_none=True)
    document["kind"] = f"JOB_KIND_{document['kind'].upper()}"
    document["state"] = f"JOB_STATE_{document['state'].upper()}"
    job = pb.Job()
    ParseDict(document, job, ignore_unknown_fields=True)
    return job


def state_of(state: JobState) -> pb.JobState:
    value: pb.JobState = pb.JobState.Value(f"JOB_STATE_{state.upper()}")
    return value


def options_of(options: pb.Options) -> Options:
    """What was said; the rest as it is by default."""
    return Options(**{field.name: value for field, value in options.ListFields()})

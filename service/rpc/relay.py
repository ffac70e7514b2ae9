"""How the API reaches a worker's live streams: the one call that is spoken between them.

The worker answers with the messages of `DenoiseStream`, or with a problem document as the last word, and never ends a
call that the API has not ended: of a call that ends while it writes, the library for event loops tells "internal error"
in place of the status (grpcio 1.85, `_StreamRequestMixin._write`).
"""

import json
from typing import Any

from service.rpc.generated.quietframe.v1 import denoiser_pb2 as pb

Problem = dict[str, Any]
Answer = pb.DenoiseStreamResponse | Problem

_JSON = b"{"  # no message of ours begins so: it would be a group, which there are none of
# The messages are those of `quietframe.v1.Denoiser/DenoiseStream`; the name is another, for it is no public service.
RESTORE = "/quietframe.internal.Live/Restore"
TOKEN_KEY = "quietframe-live-token"  # noqa: S105 - the name of a header
_MS = 1000
OPTIONS = [
    # The door that callers come through bounds their messages; an answer is as long as its frame.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Both ends learn within half a minute of the other's machine having gone without a word.
    ("grpc.keepalive_time_ms", 20 * _MS),
    ("grpc.keepalive_timeout_ms", 10 * _MS),
    ("grpc.http2.min_ping_interval_without_data_ms", 10 * _MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),
]


def pack(answer: Answer) -> bytes:
    if isinstance(answer, dict):
        return json.dumps(answer).encode()
    packed: bytes = answer.SerializeToString()
    return packed


def unpack(data: bytes) -> Answer:
    if data.startswith(_JSON):
        problem: Problem = json.loads(data)
        return problem
    answer: pb.DenoiseStreamResponse = pb.DenoiseStreamResponse.FromString(data)
    return answer

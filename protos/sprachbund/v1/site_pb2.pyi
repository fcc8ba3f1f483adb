import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttemptPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTEMPT_PHASE_UNSPECIFIED: _ClassVar[AttemptPhase]
    ATTEMPT_PHASE_STAGING: _ClassVar[AttemptPhase]
    ATTEMPT_PHASE_QUEUED: _ClassVar[AttemptPhase]
    ATTEMPT_PHASE_RUNNING: _ClassVar[AttemptPhase]
    ATTEMPT_PHASE_UPLOADING: _ClassVar[AttemptPhase]
    ATTEMPT_PHASE_ENDED: _ClassVar[AttemptPhase]

class AttemptOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTEMPT_OUTCOME_UNSPECIFIED: _ClassVar[AttemptOutcome]
    ATTEMPT_OUTCOME_SUCCEEDED: _ClassVar[AttemptOutcome]
    ATTEMPT_OUTCOME_FAILED: _ClassVar[AttemptOutcome]
    ATTEMPT_OUTCOME_PREEMPTED: _ClassVar[AttemptOutcome]
    ATTEMPT_OUTCOME_EXPIRED: _ClassVar[AttemptOutcome]
    ATTEMPT_OUTCOME_REFUSED: _ClassVar[AttemptOutcome]
    ATTEMPT_OUTCOME_CORRUPT: _ClassVar[AttemptOutcome]
    ATTEMPT_OUTCOME_CANCELLED: _ClassVar[AttemptOutcome]

class UsageSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    USAGE_SOURCE_UNSPECIFIED: _ClassVar[UsageSource]
    USAGE_SOURCE_SACCT: _ClassVar[UsageSource]
    USAGE_SOURCE_CLOCK: _ClassVar[UsageSource]

class BudgetKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUDGET_KIND_UNSPECIFIED: _ClassVar[BudgetKind]
    BUDGET_KIND_DESCRIBED: _ClassVar[BudgetKind]
    BUDGET_KIND_RENEWED: _ClassVar[BudgetKind]
    BUDGET_KIND_RETURNED: _ClassVar[BudgetKind]
ATTEMPT_PHASE_UNSPECIFIED: AttemptPhase
ATTEMPT_PHASE_STAGING: AttemptPhase
ATTEMPT_PHASE_QUEUED: AttemptPhase
ATTEMPT_PHASE_RUNNING: AttemptPhase
ATTEMPT_PHASE_UPLOADING: AttemptPhase
ATTEMPT_PHASE_ENDED: AttemptPhase
ATTEMPT_OUTCOME_UNSPECIFIED: AttemptOutcome
ATTEMPT_OUTCOME_SUCCEEDED: AttemptOutcome
ATTEMPT_OUTCOME_FAILED: AttemptOutcome
ATTEMPT_OUTCOME_PREEMPTED: AttemptOutcome
ATTEMPT_OUTCOME_EXPIRED: AttemptOutcome
ATTEMPT_OUTCOME_REFUSED: AttemptOutcome
ATTEMPT_OUTCOME_CORRUPT: AttemptOutcome
ATTEMPT_OUTCOME_CANCELLED: AttemptOutcome
USAGE_SOURCE_UNSPECIFIED: UsageSource
USAGE_SOURCE_SACCT: UsageSource
USAGE_SOURCE_CLOCK: UsageSource
BUDGET_KIND_UNSPECIFIED: BudgetKind
BUDGET_KIND_DESCRIBED: BudgetKind
BUDGET_KIND_RENEWED: BudgetKind
BUDGET_KIND_RETURNED: BudgetKind

class Progress(_message.Message):
    __slots__ = ("step", "steps", "tokens", "loss", "tokens_per_second", "joules")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    JOULES_FIELD_NUMBER: _ClassVar[int]
    step: int
    steps: int
    tokens: int
    loss: float
    tokens_per_second: float
    joules: float
    def __init__(self, step: _Optional[int] = ..., steps: _Optional[int] = ..., tokens: _Optional[int] = ..., loss: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., joules: _Optional[float] = ...) -> None: ...

class AttemptReport(_message.Message):
    __slots__ = ("attempt", "phase", "outcome", "reason", "native_id", "progress", "contribution", "usage", "detail", "started")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NATIVE_ID_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    attempt: str
    phase: AttemptPhase
    outcome: AttemptOutcome
    reason: str
    native_id: str
    progress: Progress
    contribution: str
    usage: Usage
    detail: str
    started: bool
    def __init__(self, attempt: _Optional[str] = ..., phase: _Optional[_Union[AttemptPhase, str]] = ..., outcome: _Optional[_Union[AttemptOutcome, str]] = ..., reason: _Optional[str] = ..., native_id: _Optional[str] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., contribution: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., detail: _Optional[str] = ..., started: _Optional[bool] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("gpu_seconds", "seconds", "queued_seconds", "joules", "source")
    GPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    JOULES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    gpu_seconds: float
    seconds: float
    queued_seconds: float
    joules: float
    source: UsageSource
    def __init__(self, gpu_seconds: _Optional[float] = ..., seconds: _Optional[float] = ..., queued_seconds: _Optional[float] = ..., joules: _Optional[float] = ..., source: _Optional[_Union[UsageSource, str]] = ...) -> None: ...

class Holding(_message.Message):
    __slots__ = ("language", "is_public", "documents", "text_bytes", "heldout_documents", "licence", "digest")
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    IS_PUBLIC_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    TEXT_BYTES_FIELD_NUMBER: _ClassVar[int]
    HELDOUT_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    language: str
    is_public: bool
    documents: int
    text_bytes: int
    heldout_documents: int
    licence: str
    digest: str
    def __init__(self, language: _Optional[str] = ..., is_public: _Optional[bool] = ..., documents: _Optional[int] = ..., text_bytes: _Optional[int] = ..., heldout_documents: _Optional[int] = ..., licence: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class SiteDescription(_message.Message):
    __slots__ = ("agent_version", "slots", "holdings", "draining", "merges", "allocations", "windows", "gpus", "launcher")
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    MERGES_FIELD_NUMBER: _ClassVar[int]
    ALLOCATIONS_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    LAUNCHER_FIELD_NUMBER: _ClassVar[int]
    agent_version: str
    slots: int
    holdings: _containers.RepeatedCompositeFieldContainer[Holding]
    draining: bool
    merges: bool
    allocations: _containers.RepeatedCompositeFieldContainer[Allocation]
    windows: _containers.RepeatedCompositeFieldContainer[Window]
    gpus: int
    launcher: str
    def __init__(self, agent_version: _Optional[str] = ..., slots: _Optional[int] = ..., holdings: _Optional[_Iterable[_Union[Holding, _Mapping]]] = ..., draining: _Optional[bool] = ..., merges: _Optional[bool] = ..., allocations: _Optional[_Iterable[_Union[Allocation, _Mapping]]] = ..., windows: _Optional[_Iterable[_Union[Window, _Mapping]]] = ..., gpus: _Optional[int] = ..., launcher: _Optional[str] = ...) -> None: ...

class Allocation(_message.Message):
    __slots__ = ("name", "gpu_hours", "until")
    NAME_FIELD_NUMBER: _ClassVar[int]
    GPU_HOURS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    name: str
    gpu_hours: float
    until: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., gpu_hours: _Optional[float] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("cron", "length", "timezone")
    CRON_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    TIMEZONE_FIELD_NUMBER: _ClassVar[int]
    cron: str
    length: _duration_pb2.Duration
    timezone: str
    def __init__(self, cron: _Optional[str] = ..., length: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., timezone: _Optional[str] = ...) -> None: ...

class SyncRequest(_message.Message):
    __slots__ = ("site", "attempts", "wait", "seen", "incarnation")
    SITE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    site: SiteDescription
    attempts: _containers.RepeatedCompositeFieldContainer[AttemptReport]
    wait: _duration_pb2.Duration
    seen: int
    incarnation: str
    def __init__(self, site: _Optional[_Union[SiteDescription, _Mapping]] = ..., attempts: _Optional[_Iterable[_Union[AttemptReport, _Mapping]]] = ..., wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., seen: _Optional[int] = ..., incarnation: _Optional[str] = ...) -> None: ...

class SignedAssignment(_message.Message):
    __slots__ = ("attempt", "lease", "job", "signature")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    attempt: str
    lease: _duration_pb2.Duration
    job: bytes
    signature: bytes
    def __init__(self, attempt: _Optional[str] = ..., lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., job: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SyncResponse(_message.Message):
    __slots__ = ("revision", "wanted", "settled", "checkpoint", "next", "now", "upload_bytes_max", "used_up")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    USED_UP_FIELD_NUMBER: _ClassVar[int]
    revision: int
    wanted: _containers.RepeatedCompositeFieldContainer[SignedAssignment]
    settled: _containers.RepeatedScalarFieldContainer[str]
    checkpoint: LedgerCheckpoint
    next: _duration_pb2.Duration
    now: _timestamp_pb2.Timestamp
    upload_bytes_max: int
    used_up: _containers.RepeatedCompositeFieldContainer[UsedUpBudget]
    def __init__(self, revision: _Optional[int] = ..., wanted: _Optional[_Iterable[_Union[SignedAssignment, _Mapping]]] = ..., settled: _Optional[_Iterable[str]] = ..., checkpoint: _Optional[_Union[LedgerCheckpoint, _Mapping]] = ..., next: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., now: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., upload_bytes_max: _Optional[int] = ..., used_up: _Optional[_Iterable[_Union[UsedUpBudget, _Mapping]]] = ...) -> None: ...

class UsedUpBudget(_message.Message):
    __slots__ = ("kind", "again", "reason")
    KIND_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    kind: BudgetKind
    again: _duration_pb2.Duration
    reason: str
    def __init__(self, kind: _Optional[_Union[BudgetKind, str]] = ..., again: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class LedgerCheckpoint(_message.Message):
    __slots__ = ("sequence", "head", "signature", "public_key")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    head: str
    signature: bytes
    public_key: bytes
    def __init__(self, sequence: _Optional[int] = ..., head: _Optional[str] = ..., signature: _Optional[bytes] = ..., public_key: _Optional[bytes] = ...) -> None: ...

class RenewCertificateRequest(_message.Message):
    __slots__ = ("signing_request",)
    SIGNING_REQUEST_FIELD_NUMBER: _ClassVar[int]
    signing_request: bytes
    def __init__(self, signing_request: _Optional[bytes] = ...) -> None: ...

class RenewCertificateResponse(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    def __init__(self, certificate: _Optional[bytes] = ...) -> None: ...

import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SiteCommand(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SITE_COMMAND_UNSPECIFIED: _ClassVar[SiteCommand]
    SITE_COMMAND_DRAIN: _ClassVar[SiteCommand]
    SITE_COMMAND_RESUME: _ClassVar[SiteCommand]
    SITE_COMMAND_SUSPEND: _ClassVar[SiteCommand]
SITE_COMMAND_UNSPECIFIED: SiteCommand
SITE_COMMAND_DRAIN: SiteCommand
SITE_COMMAND_RESUME: SiteCommand
SITE_COMMAND_SUSPEND: SiteCommand

class SubmitCampaignRequest(_message.Message):
    __slots__ = ("campaign",)
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    campaign: bytes
    def __init__(self, campaign: _Optional[bytes] = ...) -> None: ...

class StopCampaignRequest(_message.Message):
    __slots__ = ("campaign", "reason")
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    campaign: str
    reason: str
    def __init__(self, campaign: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CommandResponse(_message.Message):
    __slots__ = ("reason", "sequence")
    REASON_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    sequence: int
    def __init__(self, reason: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class IssueTokenRequest(_message.Message):
    __slots__ = ("site", "organisation", "country", "valid")
    SITE_FIELD_NUMBER: _ClassVar[int]
    ORGANISATION_FIELD_NUMBER: _ClassVar[int]
    COUNTRY_FIELD_NUMBER: _ClassVar[int]
    VALID_FIELD_NUMBER: _ClassVar[int]
    site: str
    organisation: str
    country: str
    valid: _duration_pb2.Duration
    def __init__(self, site: _Optional[str] = ..., organisation: _Optional[str] = ..., country: _Optional[str] = ..., valid: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class IssueTokenResponse(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: str
    def __init__(self, token: _Optional[str] = ...) -> None: ...

class SetSiteRequest(_message.Message):
    __slots__ = ("site", "command", "reason")
    SITE_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    site: str
    command: SiteCommand
    reason: str
    def __init__(self, site: _Optional[str] = ..., command: _Optional[_Union[SiteCommand, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class RevokeRequest(_message.Message):
    __slots__ = ("role", "name", "reason")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    role: str
    name: str
    reason: str
    def __init__(self, role: _Optional[str] = ..., name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class PromoteRequest(_message.Message):
    __slots__ = ("campaign", "version", "reason")
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    campaign: str
    version: str
    reason: str
    def __init__(self, campaign: _Optional[str] = ..., version: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class GetViewRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("interval",)
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    interval: _duration_pb2.Duration
    def __init__(self, interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class View(_message.Message):
    __slots__ = ("view",)
    VIEW_FIELD_NUMBER: _ClassVar[int]
    view: bytes
    def __init__(self, view: _Optional[bytes] = ...) -> None: ...

class WhyRequest(_message.Message):
    __slots__ = ("subject",)
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    subject: str
    def __init__(self, subject: _Optional[str] = ...) -> None: ...

class WhyResponse(_message.Message):
    __slots__ = ("subject", "lines")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    subject: str
    lines: _containers.RepeatedCompositeFieldContainer[StoryLine]
    def __init__(self, subject: _Optional[str] = ..., lines: _Optional[_Iterable[_Union[StoryLine, _Mapping]]] = ...) -> None: ...

class StoryLine(_message.Message):
    __slots__ = ("at", "sequence", "text")
    AT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    at: float
    sequence: int
    text: str
    def __init__(self, at: _Optional[float] = ..., sequence: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class ForecastRequest(_message.Message):
    __slots__ = ("campaign", "assumptions")
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    ASSUMPTIONS_FIELD_NUMBER: _ClassVar[int]
    campaign: bytes
    assumptions: bytes
    def __init__(self, campaign: _Optional[bytes] = ..., assumptions: _Optional[bytes] = ...) -> None: ...

class ForecastResponse(_message.Message):
    __slots__ = ("forecast",)
    FORECAST_FIELD_NUMBER: _ClassVar[int]
    forecast: bytes
    def __init__(self, forecast: _Optional[bytes] = ...) -> None: ...

class CarryRequest(_message.Message):
    __slots__ = ("said",)
    SAID_FIELD_NUMBER: _ClassVar[int]
    said: bytes
    def __init__(self, said: _Optional[bytes] = ...) -> None: ...

class CarryResponse(_message.Message):
    __slots__ = ("missing", "answer")
    MISSING_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    missing: _containers.RepeatedScalarFieldContainer[str]
    answer: bytes
    def __init__(self, missing: _Optional[_Iterable[str]] = ..., answer: _Optional[bytes] = ...) -> None: ...

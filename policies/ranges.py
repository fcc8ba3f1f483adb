"""Which values the numbers of our policies may take; decoding and JSON Schemas both enforce them."""

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]  #: at least one of something
Natural = Annotated[int, Meta(ge=0)]  #: none is possible; also seeds
Share = Annotated[float, Meta(ge=0, le=1)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]  #: a share that is never the whole
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
VocabularySize = Annotated[int, Meta(ge=257)]  #: of a byte-level BPE: 256 bytes and an end of text at least
Port = Annotated[int, Meta(ge=0, le=65535)]  #: 0: any free one
COURIER = "courier"  #: in place of an address: no network leads there, bundles are carried
_ADDRESS = r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}"
Address = Annotated[
    str,
    Meta(
        pattern=f"^{_ADDRESS}$",
        description="host:port, such as coordinator.example.eu:7443 or [::1]:7443",
    ),
]
AddressOrCourier = Annotated[
    str,
    Meta(
        pattern=f"^({COURIER}|{_ADDRESS}(,{_ADDRESS}){{0,9}})$",
        description="host:port, such as coordinator.example.eu:7443; several with commas between, where coordinators "
        "take turns; or courier, where bundles carry everything",
    ),
]

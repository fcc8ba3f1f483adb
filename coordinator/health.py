"""Whether the coordinator serves, by the standard health service, and what time it has."""

import time
from typing import Any

import grpc
from grpc_health.v1 import health

from consortium.channels import CLOCK


class Health(health.aio.HealthServicer):  # type: ignore[misc]  # grpc carries no types
    """The standard one, with this clock in the trailing metadata: a site's doctor compares its own."""

    async def Check(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        context.set_trailing_metadata(((CLOCK, f"{time.time():.3f}"),))
        return await super().Check(request, context)

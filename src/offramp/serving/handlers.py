"""What answers a route: an endpoint of a wire format, a page, what else reads a body. Refusals become replies here."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, final

from offramp.serving.endpoint import Call, Endpoint, Page, Reply
from offramp.serving.exchange import ClientGone, Exchange
from offramp.serving.request import Refusal
from offramp.serving.settings import ServerSettings

if TYPE_CHECKING:
    from offramp.serving.service import Service

log = logging.getLogger("offramp.serving")

Path = Mapping[str, str]
"""Values of a path's parameters."""
Refuse = Callable[[Call, Refusal], Reply]


class Application(Protocol):
    """The application, as far as handlers look at it; see `offramp.serving.app`."""

    settings: ServerSettings
    service: Service | None

    @property
    def ready(self) -> bool:
        """Return whether rows are answered."""

    @property
    def reason(self) -> str:
        """Return why no rows are answered."""


@final
@dataclass(frozen=True)
class BodyHandler:
    """Answers requests with a body, once it is read, with a service, once it is there.

    Attributes:
        app: with the service.
        write: returns the reply to a call; raises a `Refusal`.
        refuse: returns the reply to a call that is refused.
    """

    app: Application
    write: Callable[[Exchange, Call, Service], Awaitable[Reply]]
    refuse: Refuse

    async def __call__(self, exchange: Exchange, path: Path) -> tuple[Reply, Refusal | None]:
        """Return the reply, and the refusal if it is one."""
        call = Call(b"", exchange.headers, path)
        try:
            call = Call(await exchange.body(self.app.settings.limits.payload_limit), exchange.headers, path)
            return await self.write(exchange, call, _service(self.app)), None
        except Refusal as error:
            refusal = error
        except ClientGone:
            raise
        except Exception:
            log.exception("request %s to %s failed", exchange.request_id, exchange.path)
            refusal = Refusal("failed", f"internal error, request {exchange.request_id}")
        return self.refuse(call, refusal), refusal


@final
@dataclass(frozen=True)
class EndpointHandler:
    """Writes the replies of an endpoint, for `BodyHandler`."""

    endpoint: Endpoint

    async def __call__(self, exchange: Exchange, call: Call, service: Service) -> Reply:
        """Return the reply to a call."""
        request = self.endpoint.read(call, service.served)
        return self.endpoint.write(request, await exchange.run(service, request), service.served)


@final
@dataclass(frozen=True)
class PageHandler:
    """Answers a page's requests."""

    app: Application
    page: Page

    async def __call__(self, exchange: Exchange, path: Path) -> tuple[Reply, Refusal | None]:
        """Return the reply, and the refusal if it is one."""
        call = Call(b"", exchange.headers, path)
        try:
            served = _service(self.app).served
            if self.page.ready and not self.app.ready:
                raise Refusal("unavailable", self.app.reason, 1.0)
            return self.page.write(call, served), None
        except Refusal as error:
            return self.page.refuse(call, error), error


def starting() -> Refusal:
    """Return the refusal of a server that has no model yet."""
    return Refusal("unavailable", "the server is starting: the model is not loaded yet", 1.0)


def _service(app: Application) -> Service:
    if app.service is None:
        raise starting()
    return app.service

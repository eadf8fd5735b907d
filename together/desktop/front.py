"""Where the page listens: in the clear for this machine, by HTTPS for all others, with the cluster's authority.

With `--plain-http` there is one door, in the clear, for a proxy of the person's own; who comes by it is a stranger.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from socket import socket

from fastapi import FastAPI

from together.api.access import own_names
from together.api.server import bind, serving
from together.cluster.identity import own_addresses
from together.errors import TogetherError
from together.settings import Settings
from together.trust.page import page_certificate
from together.trust.secret import SecretFile

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
LOOK_EVERY = 1.0  # seconds
ANEW_EVERY = 24 * 3600.0  # seconds: a certificate is made for a year and some days


@dataclass(slots=True)
class PageCertificates:
    """What the door of the network shows: made anew for other addresses, for another join code, and every day."""

    settings: Settings
    context: ssl.SSLContext
    _made: tuple[bytes, tuple[str, ...], int] | None = None

    @classmethod
    def of(cls, settings: Settings) -> PageCertificates:
        """Raises AppError where no join code can be kept, OSError."""
        made = cls(settings, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        made.renew(0)
        return made

    def renew(self, day: int) -> None:
        """Whoever connects from now on sees a certificate for what this machine is called now."""
        settings = self.settings
        secret = SecretFile(settings.config_path).get()
        names = (*own_addresses(settings.host), LOOPBACK, *sorted(own_names()), *settings.host_names)
        if (secret, names, day) != self._made:
            page_certificate(secret, names).load_into(self.context)
            self._made = secret, names, day

    async def follow(self) -> None:
        """Until cancelled."""
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await asyncio.to_thread(self.renew, int((clock() - began) / ANEW_EVERY))
            except (TogetherError, OSError) as error:  # between two networks it has no address; what it shows stays
                logger.info("the page's certificate is not renewed now: %s", error)


@dataclass(frozen=True, slots=True)
class PageDoors:
    """The listening sockets of one app: `home`, and `network` where that is another one."""

    home: socket
    network: socket | None
    certificates: PageCertificates | None

    @classmethod
    def open(cls, settings: Settings) -> PageDoors:
        """Raises Unreachable where no port is free, BadSetting for a host without an address, AppError."""
        own_addresses(settings.host)  # refuses a host without an address before ports are tried
        if not settings.open_to_network or settings.plain_http:
            return cls(bind(settings.host, settings.port), None, None)
        home = bind(LOOPBACK, settings.port)
        try:
            port = home.getsockname()[1] + 1 if settings.port else 0
            return cls(home, bind(settings.host, port), PageCertificates.of(settings))
        except BaseException:
            home.close()
            raise

    @property
    def port(self) -> int:
        """For this machine."""
        port: int = self.home.getsockname()[1]
        return port

    @property
    def shown(self) -> int:
        """For other machines, or for this one where it is alone."""
        port: int = (self.network or self.home).getsockname()[1]
        return port

    @asynccontextmanager
    async def serving(self, app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(serving(app, self.home))
            if self.network is not None and self.certificates is not None:
                behind = serving(app, self.network, tls=self.certificates.context, first=False)
                await stack.enter_async_context(behind)
            yield

    def close(self) -> None:
        self.home.close()
        if self.network is not None:
            self.network.close()

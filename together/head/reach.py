"""How other machines and phones reach an app: its addresses, its page, and what to run there to join."""

from __future__ import annotations

import socket

from together.cluster_types import Endpoint, address_text
from together.commands import USUAL
from together.settings import Settings
from together.trust.secret import SecretFile

BEYOND = ("203.0.113.1", 9)  # an address of no machine: asking for the way there sends nothing


def likely_first(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """This machine's addresses, first the one of the default route, which other machines most likely reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(BEYOND)
            own = probe.getsockname()[0]
        except OSError:  # no way out of this network
            return addresses
    return tuple(sorted(addresses, key=lambda address: address != own))


def page_address(settings: Settings, head: Endpoint, page: int) -> str:
    """Of an app's page on port `page`, for other machines."""
    return f"{network_scheme(settings.plain_http)}://{address_text(likely_first(head.addresses)[0], page)}"


def network_scheme(plain: bool) -> str:
    return "http" if plain else "https"


def join_command(settings: Settings, head: Endpoint) -> str:
    """What makes another machine a node of this app. Raises AppError where no join code can be kept."""
    code, peer = SecretFile(settings.config_path).code(), address_text(likely_first(head.addresses)[0], head.port)
    return f"{USUAL} join {code} node --host 0.0.0.0 --peer {peer}"

"""Which network addresses Toolcrib may call: public unicast ones, plus the exceptions an operator named.

The ranges are the IANA special-purpose registries, written out here because `ipaddress` answers differently from one
Python patch release to the next. Addresses that carry an IPv4 address inside (mapped, NAT64, 6to4, Teredo) are judged
by that one, because that is where the packets end up. Nothing here resolves names or opens connections.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


# Cloud metadata services: they hand out credentials to whoever asks. Some lie in ranges that are harmless otherwise.
_METADATA = frozenset(
    ip_address(text)
    for text in ("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
)
_LOOPBACK = _networks("127.0.0.0/8", "::1/128")
_PRIVATE = _networks("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
_ANY = _networks("0.0.0.0/0", "::/0")
_KEYWORDS = {"loopback": _LOOPBACK, "private": _PRIVATE, "any": _ANY}

# The first range that holds an address names it, so narrow ranges stand before wide ones.
_SPECIAL: tuple[tuple[str, tuple[Network, ...]], ...] = (
    ("loopback", _LOOPBACK),
    ("private", _PRIVATE),
    ("link-local", _networks("169.254.0.0/16", "fe80::/10")),
    ("unspecified", _networks("0.0.0.0/8", "::/128")),
    ("multicast", _networks("224.0.0.0/4", "ff00::/8")),
    ("broadcast", _networks("255.255.255.255/32")),
    ("documentation", _networks("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20")),
    ("reserved", _networks("192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "240.0.0.0/4", "2001::/23")),
)
_GLOBAL_IPV6 = IPv6Network("2000::/3")  # the only part of IPv6 handed out for unicast
_NAT64 = IPv6Network("64:ff9b::/96")
_IPV4_COMPATIBLE = IPv6Network("::/96")


def effective_address(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that is only a way to write or to reach it; otherwise the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped:
        return address.ipv4_mapped
    if address.sixtofour:
        return address.sixtofour
    if address.teredo:
        return address.teredo[1]
    value = int(address)
    if address in _NAT64 or (address in _IPV4_COMPATIBLE and value > 0xFFFF):  # ::1 and :: are not IPv4 addresses
        return IPv4Address(value & 0xFFFFFFFF)
    return address


def address_kind(address: Address) -> str:
    """What sort of address it is: `public`, `loopback`, `private`, `link-local`, `metadata`, `reserved`, ..."""
    address = effective_address(address)
    if address in _METADATA:
        return "cloud metadata"
    for kind, networks in _SPECIAL:
        if any(address in network for network in networks):
            return kind
    return "public" if isinstance(address, IPv4Address) or address in _GLOBAL_IPV6 else "reserved"


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Public addresses, and the exceptions in `allow`.

    Loopback and private addresses are allowed by any network that holds them. The rest (link-local, metadata,
    multicast, reserved ...) only by a network that means them: one single address, a part of exactly that range, or
    everything. So `128.0.0.0/1` or `private` never opens a metadata service by accident.
    """

    allow: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "AddressPolicy":
        """Read `127.0.0.0/8`, `10.1.2.3`, `loopback`, `private` or `any`; blank entries are skipped.

        Raises:
            ValueError: an entry is none of these; the message quotes it.
        """
        allow: list[Network] = []
        for text in (raw.strip().lower() for raw in texts):
            if not text:
                continue
            if text in _KEYWORDS:
                allow += _KEYWORDS[text]
                continue
            try:
                network = ip_network(text)
            except ValueError as error:
                raise ValueError(
                    f"{text!r} is not an address, a network such as 10.1.0.0/16 (without host bits), "
                    "or one of loopback, private, any"
                ) from error
            single = network.prefixlen == network.max_prefixlen
            allow.append(ip_network(effective_address(network.network_address)) if single else network)
        return cls(tuple(allow))

    def permits(self, address: Address) -> bool:
        """Whether a connection to this address may be opened."""
        kind = address_kind(address)
        return kind == "public" or self.names(address)

    def names(self, address: Address) -> bool:
        """Whether an exception in `allow` covers this address."""
        kind = address_kind(address)
        effective = effective_address(address)
        return any(effective in network and _means(network, kind) for network in self.allow)


def _means(network: Network, kind: str) -> bool:
    if kind in {"public", "loopback", "private"} or network.prefixlen in {0, network.max_prefixlen}:
        return True
    own = next((networks for name, networks in _SPECIAL if name == kind), ())  # nothing for metadata
    return any(network.version == wide.version and network.subnet_of(wide) for wide in own)  # type: ignore[arg-type]

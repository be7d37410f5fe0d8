"""Mesh names and the answers to questions about them (pure: bytes in, bytes out).

Rule: only names of the mesh's table are answered; `answer` returns None for everything else, which
means "pass it on untouched". A mesh name without an address of the asked family has no data (NOERROR,
empty), it does not fail to exist; an unknown name below `svc.<domain>`, which only the mesh gives out,
does not exist (NXDOMAIN).
Not for: sockets, forwarding. Sources: RFC 1035, RFC 2308 §2, RFC 8020; Istio's nds.v1.NameTable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rrset

TTL = 30
_UDP_PLAIN = 512
_UDP_EDNS = 1232
_HEADER = 12
_SERVICE_BINDING = (dns.rdatatype.RdataType.SVCB, dns.rdatatype.RdataType.HTTPS)


@dataclass(frozen=True, slots=True)
class Addresses:
    """What a name leads to."""

    v4: tuple[str, ...] = ()
    v6: tuple[str, ...] = ()

    @classmethod
    def of(cls, texts: Iterable[str]) -> Addresses:
        """Sort addresses by family, without repetition; what is no address is left out."""
        v4: list[str] = []
        v6: list[str] = []
        for text in texts:
            try:
                address = ip_address(text)
            except ValueError:
                continue
            family = v4 if address.version == 4 else v6
            if str(address) not in family:
                family.append(str(address))
        return cls(tuple(v4), tuple(v6))


class Names:
    """The names one workload can see. Immutable; a new table makes a new one."""

    def __init__(
        self,
        hosts: Mapping[str, Addresses],
        alternates: Mapping[str, str],
        namespace: str,
        domain: str,
        *,
        known: bool = True,
    ) -> None:
        """`hosts` by full name (or `*.suffix`); `alternates` maps further names to full ones.

        `known` is false before the first table arrived: names that only the mesh gives out then fail
        (SERVFAIL) instead of not existing or leaking to the host's resolver.
        """
        self.known, self.domain = known, domain
        self._hosts = {_fold(name): found for name, found in hosts.items()}
        self._alternates = {_fold(name): _fold(full) for name, full in alternates.items()}
        self._owned = f"svc.{domain}"
        self._search: tuple[str, ...] = (f"{namespace}.svc.{domain}", f"svc.{domain}", domain)
        self._parents = {
            ".".join(labels[index:])
            for labels in (name.split(".") for name in self._hosts if name.endswith("." + self._owned))
            for index in range(1, len(labels))
        }

    def __len__(self) -> int:
        return len(self._hosts)

    def find(self, name: str, search: Iterable[str] = ()) -> str | None:
        """The table's own name for a name in any form: full, alternate, short by search domain, wildcard.

        `search`: the host's own search domains. The C library asks for `reviews.corp.example` before `reviews`, and a
        wildcard of that domain would answer: a mesh name with such a domain behind it is the mesh name.
        """
        folded = _fold(name)
        found = self._named(folded)
        for suffix in search:
            if found is None and folded.endswith(f".{suffix}"):
                found = self._named(folded.removesuffix(f".{suffix}"))
        if found is not None:
            return found
        labels = folded.split(".")
        wildcards = ("*." + ".".join(labels[index:]) for index in range(1, len(labels)))
        return next((form for form in wildcards if form in self._hosts), None)

    def _named(self, folded: str) -> str | None:
        forms = (folded, self._alternates.get(folded, ""), *(f"{folded}.{suffix}" for suffix in self._search))
        return next((form for form in forms if form in self._hosts), None)

    @classmethod
    def shared(cls, views: Sequence[Names]) -> Names:
        """For questions that cannot be assigned to a workload, such as a resolver daemon's, which asks for all users: the
        names that only the mesh gives out, as any of the workloads can see them. Outside names are left alone: users
        without a workload are not captured, and could not reach a virtual address."""
        merged = cls({}, {}, "", views[0].domain, known=all(view.known for view in views))
        merged._search = tuple(dict.fromkeys(suffix for view in views for suffix in view._search))
        for view in views:
            for name, found in view._hosts.items():
                if view.owns(name):
                    merged._hosts.setdefault(name, found)
            for name, full in view._alternates.items():
                if view.owns(full):
                    merged._alternates.setdefault(name, full)
            merged._parents |= view._parents
        return merged

    def addresses(self, full: str) -> Addresses:
        """The addresses of a name that `find` gave."""
        return self._hosts[full]

    def owns(self, name: str) -> bool:
        """Whether only the mesh gives out names like this one."""
        folded = _fold(name)
        return folded == self._owned or folded.endswith("." + self._owned)

    def has_below(self, name: str) -> bool:
        """Whether the name is an empty non-terminal: known names lie below it (RFC 8020)."""
        return _fold(name) in self._parents


def _fold(name: str) -> str:
    return name.rstrip(".").lower()


def answer(
    query: bytes, names: Names, *, stream: bool, rotation: int = 0, search: Iterable[str] = ()
) -> bytes | None:
    """The response to a query, or None when the query is not ours.

    `stream` is true over TCP. `rotation` turns lists of addresses round. `search`: see Names.find.
    """
    if len(query) < _HEADER or query[2] & 0x80 or (query[2] >> 3) & 0x0F:
        return None  # no query (a response, or an opcode that the host's resolver must judge)
    try:
        question_only = dns.message.from_wire(query, question_only=True, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return None
    if len(question_only.question) != 1 or question_only.question[0].rdclass != dns.rdataclass.IN:
        return None
    question = question_only.question[0]
    text = question.name.to_text(omit_final_dot=True)
    found = names.find(text, search)
    owned = names.owns(found or text)
    if found is None and not owned:
        return None
    address_type = question.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA, dns.rdatatype.ANY)
    if found is not None and not owned and not address_type and question.rdtype not in _SERVICE_BINDING:
        # Mail, text, … of an outside name that the mesh only gives an address: not ours. Service bindings
        # are, since their address hints would lead past the mesh.
        return None
    try:
        message = dns.message.from_wire(query)
    except (dns.exception.DNSException, ValueError):
        return failure(query, dns.rcode.FORMERR)
    response = dns.message.make_response(message, recursion_available=True, our_payload=_UDP_EDNS)
    response.flags |= dns.flags.AA
    if found is None:
        missing = dns.rcode.NOERROR if names.has_below(text) else dns.rcode.NXDOMAIN
        response.set_rcode(missing if names.known else dns.rcode.SERVFAIL)
    else:
        response.answer = _records(question.name, question.rdtype, names.addresses(found), rotation)
    if stream:
        return response.to_wire(want_shuffle=False)
    limit = max(_UDP_PLAIN, min(message.payload, _UDP_EDNS)) if message.edns >= 0 else _UDP_PLAIN
    try:
        return response.to_wire(max_size=limit, want_shuffle=False)
    except dns.exception.TooBig:
        response.answer = []
        response.flags |= dns.flags.TC
        return response.to_wire(max_size=limit)


def _records(
    name: dns.name.Name, kind: dns.rdatatype.RdataType, found: Addresses, rotation: int
) -> list[dns.rrset.RRset]:
    records = []
    for rdtype, addresses, make in (
        (dns.rdatatype.A, found.v4, dns.rdtypes.IN.A.A),
        (dns.rdatatype.AAAA, found.v6, dns.rdtypes.IN.AAAA.AAAA),
    ):
        if kind not in (rdtype, dns.rdatatype.ANY) or not addresses:
            continue
        turn = rotation % len(addresses)
        turned = addresses[turn:] + addresses[:turn]
        rdatas = [make(dns.rdataclass.IN, rdtype, address) for address in turned]
        records.append(dns.rrset.from_rdata_list(name, TTL, rdatas))
    return records


def failure(query: bytes, rcode: int = dns.rcode.SERVFAIL) -> bytes | None:
    """A bare response with an error code to any query that has a header; None when it has not even that."""
    if len(query) < _HEADER or query[2] & 0x80:
        return None
    end = question_end(query)
    flags = bytes([query[2] | 0x80, 0x80 | (query[3] & 0x10) | rcode])
    counts = b"\x00\x01" if end is not None else b"\x00\x00"
    return query[:2] + flags + counts + bytes(6) + (query[_HEADER:end] if end is not None else b"")


def question_end(message: bytes) -> int | None:
    """The offset behind the single question of a message; None when it has none, several or a broken one."""
    if len(message) < _HEADER or message[4:6] != b"\x00\x01":
        return None
    offset = _HEADER
    while offset < len(message):
        length = message[offset]
        if length == 0:
            return offset + 5 if offset + 5 <= len(message) else None
        if length > 63:
            return None
        offset += 1 + length
    return None

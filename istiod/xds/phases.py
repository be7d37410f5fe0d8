"""Make before break: in which portions new content is handed to a proxy's session.

Job: split a change so that nothing a proxy routes to is missing at any moment: first the clusters and
endpoints that are new or changed, while those going away are kept; then listeners, routes and everything
else; at last the removals.
Rule: sans-IO and without a clock: the caller says when it asks and when it has waited long enough.
Not for: order within one portion, nor the protocol (`wire.xds` sessions).
"""

from __future__ import annotations

from collections.abc import Mapping

from wire.xds import CLUSTER, ENDPOINT, DeltaSession, EncodedResource, SotwSession, endpoint_names

Session = DeltaSession | SotwSession
Content = Mapping[str, Mapping[str, EncodedResource]]

_TARGETS = (CLUSTER, ENDPOINT)


class PhasedContent:
    """What one session has been given, and what of the newest content it has still to be given.

    `step` is called whenever the session has nothing to send; it says whether it gave the session something.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._given: dict[str, Mapping[str, EncodedResource]] = {}
        self._content: Content | None = None
        self._routing_due = False
        self._removal_due = False
        self._awaited: set[str] = set()

    @property
    def given(self) -> Content:
        """What the session has been given."""
        return self._given

    @property
    def waiting(self) -> bool:
        """Whether some portion is still held back."""
        return self._routing_due or self._removal_due

    def replace(self, content: Content) -> None:
        """New content; what an earlier one still held back is superseded by it.

        The very same object as before means: this proxy cannot see what changed.
        """
        if content is self._content:
            return
        self._content = content
        if not self._given:
            # A proxy that has nothing cannot miss anything, and asks in its own order.
            self._give(content)
            return
        targets: dict[str, Mapping[str, EncodedResource]] = {}
        for type_url in _TARGETS:
            new, old = content.get(type_url, {}), self._given.get(type_url, {})
            kept = {name: resource for name, resource in old.items() if name not in new}
            targets[type_url] = {**kept, **new} if kept else new
            self._removal_due = self._removal_due or bool(kept)
        fresh = targets[CLUSTER].keys() - self._given.get(CLUSTER, {}).keys()
        self._awaited &= content.get(CLUSTER, {}).keys()
        self._awaited |= self._endpoints_of(fresh, content.get(CLUSTER, {}))
        self._give(targets)
        self._routing_due = True

    def step(self, *, patience_over: bool) -> bool:
        """Hand over the next portion if the proxy is ready for it, or if waiting has lasted long enough."""
        content = self._content or {}
        if self._routing_due:
            if not (self._targets_taken() or patience_over):
                return False
            self._routing_due = False
            self._awaited = set()
            self._give({url: names for url, names in content.items() if url not in _TARGETS})
            return True
        if self._removal_due:
            if not (self._all_answered() or patience_over):
                return False
            self._removal_due = False
            self._give({url: content.get(url, {}) for url in _TARGETS})
            return True
        return False

    def _give(self, portion: Content) -> None:
        self._given.update(portion)
        self._session.update(portion)

    def _targets_taken(self) -> bool:
        """Whether clusters and endpoints are answered, and the endpoints of new clusters were asked for."""
        if any(self._session.state(type_url).outstanding for type_url in _TARGETS):
            return False
        interest = self._session.interest(ENDPOINT)
        return interest.wildcard or self._awaited <= interest.names

    def _all_answered(self) -> bool:
        return not any(self._session.state(type_url).outstanding for type_url in self._session.types)

    def _endpoints_of(self, clusters: set[str], content: Mapping[str, EncodedResource]) -> set[str]:
        """The assignments that the proxy will ask for when it gets these clusters, if it asks for any."""
        if not clusters or not self._session.interest(CLUSTER).wildcard:
            return set()
        if ENDPOINT not in self._session.types:
            return set()
        return endpoint_names(content[name] for name in clusters if name in content)

"""The trial of a change: all documents together, on one proxy of each kind, before anything is stored.

Rule: the event loop gets its turn between two proxies; nothing is stored or sent here. A fault of the trial itself
lets the change through with a warning: the guards of the compile and the proxies' own judgement are still behind it.
Not for: validation (`istiod.resources`), storing (`istiod.api.resources`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import trio

from agent.exchange.trial import decode
from istiod.compile import Cache, ProxyInfo
from istiod.feed import Feed
from istiod.resources.document import Document
from istiod.snapshot import Snapshot
from istiod.trial.blame import culprit
from istiod.trial.judge import Findings, Interpreter, judge, together
from istiod.trial.kinds import kinds, proxy_of, to_come
from registry.model import Resource, ResourceKey, Service

log = logging.getLogger("istiod.trial")

BLAME_SECONDS = 3.0
"""How long to look for the document and field that a refusal is due to."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a document is not stored. `field` is a dotted path, `spec` at the least."""

    document: Document[Any]
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the trial found: refusals (then nothing is stored), and warnings."""

    refusals: tuple[Verdict, ...] = ()
    warnings: tuple[str, ...] = ()
    proxies: int = 0
    """How many kinds of proxies it was tried on."""


class Trial:
    """Trials on the feed's newest snapshot; `proxies` are those that are connected here, `refused` is what they
    refuse now, by type and name. `interpret`: as an agent."""

    def __init__(
        self,
        feed: Feed,
        proxies: Callable[[], Iterable[ProxyInfo]],
        cache: Cache,
        interpret: Interpreter = decode,
        refused: Callable[[], Mapping[tuple[str, str], str]] = dict,
    ) -> None:
        self._refused = refused
        self._interpret = interpret
        self._feed = feed
        self._proxies = proxies
        self._cache = cache

    async def of(self, documents: Sequence[Document[Any]], stored: Sequence[Resource]) -> Outcome:
        """What would become of `documents`, put over what is `stored`."""
        try:
            return await self._of(documents, stored)
        except Exception:
            log.exception("the trial of a change failed")
            return Outcome(warnings=("the change could not be tried before it was stored: see istiod's log",))

    async def _of(self, documents: Sequence[Document[Any]], stored: Sequence[Resource]) -> Outcome:
        base = {one.key: one for one in stored}
        wanted = [_as_stored(one.resource, base) for one in documents]
        before = self._feed.snapshot
        after = await self._with(base, wanted)
        more = to_come(after, documents)
        if more:
            before = await self._with(base, (), more)
            after = await self._with(base, wanted, more)
        candidates = [*self._proxies(), *map(proxy_of, after.instances)]
        chosen = kinds(after, candidates, documents)
        findings = await self._judge(before, after, chosen)
        count = len(chosen)
        warnings = tuple(f"proxies still refuse a part that this touches: {one}" for one in findings.old)
        known = {str(one) for one in before.conflicts}
        warnings += tuple(text for one in after.conflicts if (text := str(one)) not in known)
        if not findings.new:
            # What of a resource is at fault may be somebody else's part of it: the change has no effect there either.
            warnings += tuple(
                f"proxies refuse the resource {name} since before this change, which has no effect there: {reason}"
                for (url, name), reason in self._refused().items()
                if (url, name) in findings.touched
            )
            return Outcome((), warnings, count)
        reason = "; ".join(f"proxies would refuse it: {one}" for one in findings.new[:3])
        blamed = [Verdict(one, "spec", reason) for one in documents]
        with trio.move_on_after(BLAME_SECONDS):
            blamed = await self._blame(documents, base, before, more, chosen) or blamed
        return Outcome(tuple(blamed), warnings, count)

    async def _with(
        self,
        base: Mapping[ResourceKey, Resource],
        wanted: Iterable[Resource],
        more: Sequence[Service] = (),
    ) -> Snapshot:
        merged = {**base, **{one.key: one for one in wanted}}
        # Beside the event loop: of a large mesh it takes a while, and nothing that it reads is changed.
        return await trio.to_thread.run_sync(self._feed.imagine, tuple(merged.values()), more)

    async def _judge(self, before: Snapshot, after: Snapshot, chosen: Iterable[ProxyInfo]) -> Findings:
        found = []
        for proxy in chosen:
            found.append(judge(before, after, proxy, self._cache, self._interpret))
            await trio.lowlevel.checkpoint()
        return together(found)

    async def _blame(
        self,
        documents: Sequence[Document[Any]],
        base: Mapping[ResourceKey, Resource],
        before: Snapshot,
        more: Sequence[Service],
        chosen: Sequence[ProxyInfo],
    ) -> list[Verdict]:
        """The documents that fail without the others, each with the field; none when only all together fail."""
        verdicts = []
        for one in documents:

            async def found(resource: Resource) -> Findings:
                after = await self._with(base, [_as_stored(resource, base)], more)
                return await self._judge(before, after, chosen)

            async def fails(resource: Resource) -> bool:
                return bool((await found(resource)).new)

            alone = (await found(one.resource)).new
            if not alone:
                continue
            reason = "; ".join(f"proxies would refuse it: {finding}" for finding in alone[:3])
            verdicts.append(Verdict(one, "spec", reason))
            field = await culprit(one.resource, fails)
            verdicts[-1] = Verdict(one, field, reason)
        return verdicts


def _as_stored(resource: Resource, base: Mapping[ResourceKey, Resource]) -> Resource:
    """As the store would have it: as old as what it replaces, else the youngest."""
    former = base.get(resource.key)
    return replace(resource, version="", created=former.created if former is not None else time.time())

"""meshctl get: resources as they are stored.

Job: one or several kinds or resources, one namespace or all, by label, once or as they change: as kubectl's table, or as
manifests to apply again.
Rule: `-o yaml` of one resource is a document for `apply -f`.
Not for: what proxies made of them (`proxy-config`).
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from istiod.ctl import kinds, output, selector
from istiod.ctl.failure import CommandError
from istiod.ctl.session import session_of
from istiod.resources.kinds import KINDS, Kind

if TYPE_CHECKING:
    from istiod.ctl.client import AdminClient

SelectorOption = Annotated[
    str | None,
    typer.Option(
        "--selector", "-l", help="Only those with these labels: app=reviews,version!=v1,tier in (a,b)."
    ),
]
WATCH_SECONDS = 1.0
Manifest = dict[str, Any]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("get")(get)


def get(
    ctx: typer.Context,
    *,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="KINDS [NAME…] | KIND/NAME…",
            help="Kinds (virtualservice, vs, vs,dr, all) and perhaps names.",
            autocompletion=kinds.complete_resources,
        ),
    ],
    namespace: Annotated[str, typer.Option("--namespace", "-n", envvar="HOSTMESH_NAMESPACE")] = "default",
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A")] = False,
    labels: SelectorOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on and show changes.")] = False,
    form: Annotated[output.Format, typer.Option("-o", "--output")] = output.Format.TABLE,
) -> None:
    """Show resources."""
    wanted, names = kinds.targets(what)
    if names and (all_namespaces or labels):
        raise CommandError("a resource cannot be retrieved by name across all namespaces or by label")
    question = _Question(wanted, names, None if all_namespaces else namespace, labels)
    with session_of(ctx).client() as client:
        items = question.ask(client)
        shown = _Shown(question, form)
        shown.first(items)
        if watch:
            _watch(client, question, shown, items)


class _Question:
    """Which resources are asked for. `names` are (kind, name) pairs; without them, all of the kinds."""

    def __init__(
        self,
        wanted: Sequence[Kind],
        names: Sequence[tuple[str, str]],
        namespace: str | None,
        labels: str | None,
    ) -> None:
        self.wanted, self.names, self.namespace = wanted, names, namespace
        self._labels = labels
        if labels:
            selector.parse(labels)

    def ask(self, client: AdminClient, *, missing_is_gone: bool = False) -> list[Manifest]:
        """The resources now. A name that is not there is an error, or with `missing_is_gone` left out."""
        if not self.names:
            params = {} if self.namespace is None else {"namespace": self.namespace}
            if len(self.wanted) < len(KINDS):
                params["kind"] = ",".join(one.name for one in self.wanted)
            return selector.chosen(client.get("/api/v1/resources", params)["items"], self._labels)
        found = []
        for kind, name in self.names:
            try:
                found.append(client.get(f"/api/v1/resources/{kind}/{self.namespace}/{name}"))
            except CommandError as failure:
                if not (missing_is_gone and failure.reason == "NotFound"):
                    raise
        return found


class _Shown:
    """What was printed: the widths of the columns, so that later rows stand below the earlier ones."""

    def __init__(self, question: _Question, form: output.Format) -> None:
        self._question, self._form = question, form
        self._widths: dict[str, list[int]] = {}

    def first(self, items: Sequence[Manifest]) -> None:
        """All of them, as one answer."""
        if self._form in (output.Format.JSON, output.Format.YAML):
            one = len(self._question.names) == 1
            output.print_data(
                items[0] if one else {"apiVersion": "v1", "kind": "List", "items": items}, self._form
            )
        elif self._form is output.Format.NAME:
            self.names(items)
        elif not items:
            space = self._question.namespace
            output.note(
                f"No resources found in {'any namespace' if space is None else f'namespace {space}'}."
            )
        else:
            self._tables(items, header=True)

    def changed(self, items: Sequence[Manifest]) -> None:
        """Those that changed since, one after the other."""
        if self._form in (output.Format.JSON, output.Format.YAML):
            for item in items:
                if self._form is output.Format.YAML:
                    typer.echo("---")
                output.print_data(item, self._form)
        elif self._form is output.Format.NAME:
            self.names(items)
        else:
            self._tables(items, header=False)

    def names(self, items: Sequence[Manifest]) -> None:
        """`kind/name` of each."""
        for item in items:
            typer.echo(f"{item['kind'].lower()}/{item['metadata']['name']}")

    def _tables(self, items: Sequence[Manifest], *, header: bool) -> None:
        shown = [one.name for one in self._question.wanted if any(item["kind"] == one.name for item in items)]
        for position, kind in enumerate(shown):
            if position and header:
                typer.echo()
            columns, rows = self._rows(kind, [item for item in items if item["kind"] == kind])
            known = self._widths.get(kind, [0] * len(columns))
            cells = [*rows, columns]
            self._widths[kind] = [
                max(width, *(len(row[n]) for row in cells)) for n, width in enumerate(known)
            ]
            header = header or kind not in self._widths
            output.print_table(columns, rows, "", header=header, widths=self._widths[kind])

    def _rows(self, kind: str, items: Sequence[Manifest]) -> tuple[list[str], list[list[str]]]:
        namespaces, wide = self._question.namespace is None, self._form is output.Format.WIDE
        prefix = len(self._question.wanted) > 1
        columns = ["NAMESPACE"] * namespaces + ["NAME"]
        columns += [column for column, _ in kinds.COLUMNS.get(kind, ())]
        columns += ["AGE"] + ["VERSION", "GENERATION", "API VERSION"] * wide
        now = datetime.datetime.now(datetime.UTC)
        rows = []
        for item in items:
            metadata = item["metadata"]
            row = [metadata["namespace"]] * namespaces
            row.append(f"{kind.lower()}/{metadata['name']}" if prefix else metadata["name"])
            row += [_cell(_field(item, path)) for _, path in kinds.COLUMNS.get(kind, ())]
            created = datetime.datetime.fromisoformat(metadata["creationTimestamp"])
            row.append(output.age((now - created).total_seconds()))
            if wide:
                row += [metadata["resourceVersion"], str(metadata["generation"]), item["apiVersion"]]
            rows.append(row)
        return columns, rows


def _watch(client: AdminClient, question: _Question, shown: _Shown, items: Sequence[Manifest]) -> None:
    """Print what changes, until the user has seen enough (Ctrl-C). What is deleted is said beside the data."""
    known = {_identity(item): item for item in items}
    try:
        while True:
            time.sleep(WATCH_SECONDS)
            latest = {_identity(item): item for item in question.ask(client, missing_is_gone=True)}
            shown.changed([item for key, item in latest.items() if known.get(key) != item])
            for key in known.keys() - latest.keys():
                output.note(f"{key[0].lower()}/{key[2]} deleted from namespace {key[1]}")
            known = latest
    except KeyboardInterrupt:
        return


def _identity(item: Manifest) -> tuple[str, str, str]:
    return item["kind"], item["metadata"]["namespace"], item["metadata"]["name"]


def _field(item: Mapping[str, Any], path: str) -> Any:
    value: Any = item
    for step in path.split("."):
        if not isinstance(value, Mapping) or step not in value:
            return ""
        value = value[step]
    return value


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(f'"{entry}"' for entry in value) + "]"
    return str(value)

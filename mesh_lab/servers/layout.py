"""The layout of a mesh: its regions, their servers, the leaf nodes at its edge, and what is joined to what."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from mesh_lab.errors import BadLayoutError, UnknownNameError

Kind = Literal["route", "gateway", "leaf"]
Pair = tuple[str, str]
SIZES = (1, 3, 5, 7)
HUB = "hub"
"""JetStream domain of the regions, where there are leaf nodes: the name that a leaf node knows them by."""

# A name becomes a server's, a cluster's and a JetStream domain's, which is one token of a subject: no dot, no
# space, no wildcard. It becomes a file's too, on systems that do not tell upper case from lower.
_LEGAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class Join:
    """A connection that one server dials to another."""

    kind: Kind
    """A route inside a region, a gateway between regions, or a leaf node's connection."""
    dialler: str
    target: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Regions and leaf nodes of a mesh."""

    regions: Mapping[str, tuple[str, ...]]
    """Servers of each region."""
    leaves: Mapping[str, str]
    """Region that each leaf node dials."""
    cluster: str | None = None
    """Name of the only cluster where no regions were asked for; ``None`` where the regions name them."""

    @property
    def servers(self) -> tuple[str, ...]:
        """Every server, region by region, leaf nodes last."""
        return (*(name for names in self.regions.values() for name in names), *self.leaves)

    def region_of(self, server: str) -> str | None:
        """Return a server's region; ``None`` for a leaf node, which is of none."""
        return next((region for region, names in self.regions.items() if server in names), None)

    def near(self, server: str | None = None, region: str | None = None) -> tuple[str, ...]:
        """Return the servers that a client dials: the one asked for and its region's others, or a region's.

        Those of the first region, where it asks for neither; UnknownNameError for a region that is not there.
        """
        if region is not None and (region not in self.regions or self.cluster is not None):
            there = ", ".join(self.regions) if self.cluster is None else "none: it was started with servers="
            raise UnknownNameError(f"no region {region!r} in this mesh; there are {there}")
        if server is None:
            return next(iter(self.regions.values())) if region is None else self.regions[region]
        # A leaf node is of no region: its clients have nowhere else to go.
        home = self.regions.get(self.region_of(server) or "", ())
        return (server, *(name for name in home if name != server))

    def joins(self) -> Iterator[Join]:
        """Yield every connection that a server is configured to dial."""
        for here, there in product(self.regions, self.regions):
            for one, other in product(self.regions[here], self.regions[there]):
                if one != other:
                    yield Join("route" if here == there else "gateway", one, other)
        for leaf, region in self.leaves.items():
            yield from (Join("leaf", leaf, server) for server in self.regions[region])

    def resolve(self, name: str) -> tuple[str, ...]:
        """Return the servers of a region, or the one server or leaf node, that has a name; or UnknownNameError."""
        if self.cluster is None and name in self.regions:
            return self.regions[name]
        if name in self.servers:
            return (name,)
        named = ", ".join([*(self.regions if self.cluster is None else ()), *self.servers])
        raise UnknownNameError(f"no server, region or leaf node {name!r} in this mesh; there are {named}")

    def pairs(self, one: str, other: str) -> list[Pair]:
        """Return the pairs of servers that are joined between two places, each pair once.

        A place is a server, a region or a leaf node; the same region twice stands for the routes inside it. Where
        nothing has that name, or no link joins the two: UnknownNameError, with those there are.
        """
        here, there = self.resolve(one), self.resolve(other)
        joined = {frozenset((join.dialler, join.target)) for join in self.joins()}
        wanted = dict.fromkeys(frozenset(pair) for pair in product(here, there))
        found = [(min(pair), max(pair)) for pair in wanted if pair in joined]
        if not found:
            neighbours = sorted({name for pair in joined if pair & set(here) for name in pair - set(here)})
            raise UnknownNameError(
                f"no link between {one!r} and {other!r}; {one!r} is joined to {', '.join(neighbours) or 'nothing'}"
            )
        return found


def plan(
    servers: int = 1,
    regions: Mapping[str, int] | None = None,
    leaves: Collection[str] | Mapping[str, str] = (),
) -> Layout:
    """Return the layout of a mesh, by the arguments of :func:`~mesh_lab.servers.start.start_mesh`.

    Raises:
        BadLayoutError: A number of servers cannot agree by majority, or a name is not legal or not unique.
    """
    if regions is None:
        _check_size(servers, "")
        named = {"mesh": tuple(f"n{i}" for i in range(1, servers + 1))}
    elif not regions:
        raise BadLayoutError("regions={} asked for, expected at least one region such as regions={'eu': 3}")
    else:
        for name, size in regions.items():
            _check_name(name, "region")
            _check_size(size, f" in region {name!r}")
        named = {name: tuple(f"{name}-{i}" for i in range(1, size + 1)) for name, size in regions.items()}
    layout = Layout(named, _regions_of(leaves, list(named)), cluster="mesh" if regions is None else None)
    _check_unique(layout)
    return layout


def _regions_of(leaves: Collection[str] | Mapping[str, str], regions: Sequence[str]) -> dict[str, str]:
    if isinstance(leaves, str):
        raise BadLayoutError(f"leaves={leaves!r} asked for, expected a list of names such as leaves=[{leaves!r}]")
    named = leaves if isinstance(leaves, Mapping) else dict.fromkeys(leaves, regions[0])
    if len(named) < len(leaves):
        twice = next(name for name in leaves if list(leaves).count(name) > 1)
        raise BadLayoutError(f"two leaf nodes named {twice!r} asked for, expected names that differ")
    for leaf, region in named.items():
        _check_name(leaf, "leaf node")
        if region not in regions:
            raise BadLayoutError(f"leaf node {leaf!r} dials region {region!r}; there are {', '.join(regions)}")
    return dict(named)


def _check_size(size: object, where: str) -> None:
    if isinstance(size, bool) or size not in SIZES:
        raise BadLayoutError(f"{size!r} servers asked for{where}, expected 1, 3, 5 or 7: a cluster decides by majority")


def _check_name(name: object, what: str) -> None:
    if not isinstance(name, str) or not _LEGAL.fullmatch(name):
        raise BadLayoutError(
            f"{what} named {name!r} asked for, expected 1 to 32 letters, digits, '-' or '_': "
            "the name becomes one token of NATS subjects"
        )


def _check_unique(layout: Layout) -> None:
    taken: dict[str, str] = {HUB: "the JetStream domain of the regions"} if layout.leaves else {}
    names = [(name, f"region {name!r}") for name in (layout.regions if layout.cluster is None else ())]
    names += [(name, f"server {name!r}") for there in layout.regions.values() for name in there]
    names += [(name, f"leaf node {name!r}") for name in layout.leaves]
    for name, what in names:
        if other := taken.get(name.lower()):
            raise BadLayoutError(f"{what} has the same name as {other}, expected names that differ in every region")
        taken[name.lower()] = what

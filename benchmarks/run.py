"""Run the benchmarks, side by side with the release before: run.py [names...] [--quick]."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import faults
import invariants
import overhead
import queueing
from harness import Figures, Unmeasurable
from peers import OLD, Peer, checkout, released

BENCHMARKS: dict[str, Callable[[list[Peer], Figures, bool], None]] = {
    "invariants": invariants.run,
    "faults": faults.run,
    "queueing": queueing.run,
    "overhead": overhead.run,
}


def main() -> int:
    """Run what was asked for. The exit code says whether every must is met."""
    arguments = parse()
    peers = [checkout(arguments.python)]
    versions = peers[0].versions()
    print("on", ", ".join(f"{name} {version}" for name, version in versions.items()))
    if not arguments.alone:
        peers.append(released(versions))
    results = [measure(name, peers, arguments.quick) for name in arguments.names or BENCHMARKS]
    return 0 if all(results) else 1


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="one round, shorter: a smoke test")
    parser.add_argument("--alone", action="store_true", help=f"without {OLD}")
    parser.add_argument("--python", help="measure what this Python has installed instead")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    return arguments


def measure(name: str, peers: list[Peer], quick: bool) -> bool:
    """Run one benchmark, print its table and write its results. False: a must is not met."""
    figures, begin = Figures(), time.monotonic()
    print(f"\n== {name}{' (quick)' if quick else ''}", flush=True)
    try:
        BENCHMARKS[name](peers, figures, quick)
    except Unmeasurable as error:
        print(f"{name}: not measured: {error}")
        return False
    seconds = time.monotonic() - begin
    print(f"{figures.table()}\n({seconds:.0f} s)", flush=True)
    figures.save(name, peers, seconds)
    return all(figure.met() is not False for figure in figures.all.values())


if __name__ == "__main__":
    raise SystemExit(main())

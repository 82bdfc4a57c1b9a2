"""Runs cases and prints one line for each: `ok NAME`, `FAIL NAME: why` or `skip NAME: why`.

A script registers functions with @case("name") and ends with run("client").
"""

import os
import sys
import traceback

PLAIN_PORTS = [int(port) for port in os.environ["CORACLE_PLAIN_PORTS"].split()]
CORE_PORTS = [int(port) for port in os.environ["CORACLE_CORE_PORTS"].split()]

_cases = []


class Skip(Exception):
    """Raised by a case that cannot run here; its text says why."""


def case(name):
    def register(function):
        _cases.append((name, function))
        return function

    return register


def equal(got, want, what="value"):
    """Like assert, but with both sides in the message, and never optimized away."""
    if got == want:
        return
    if isinstance(got, list) and isinstance(want, list) and len(got) == len(want):
        at = next(i for i, (a, b) in enumerate(zip(got, want)) if a != b)
        raise AssertionError(f"{what}: item {at}: got {got[at]!r:.200}, wanted {want[at]!r:.200}")
    raise AssertionError(f"{what}: got {got!r:.200}, wanted {want!r:.200}")


def true(condition, what):
    if not condition:
        raise AssertionError(what)


def raises(kind, call, text=""):
    """The call raises `kind` with `text` in its message; returns the exception."""
    try:
        got = call()
    except kind as error:
        true(text in str(error), f"error text: got {error!s}, wanted …{text}…")
        return error
    raise AssertionError(f"got {got!r}, wanted {kind.__name__}")


def run(client):
    """Runs every case, then exits: 1 if one failed."""
    failed = False
    for name, function in _cases:
        try:
            function()
            print(f"ok {client} {name}", flush=True)
        except Skip as why:
            print(f"skip {client} {name}: {why}", flush=True)
        except Exception as error:  # Whatever a client throws is a failed case, not the end.
            failed = True
            text = " ".join(f"{type(error).__name__} {error}".split())
            place = traceback.extract_tb(error.__traceback__)[1]
            print(f"FAIL {client} {name}: line {place.lineno}: {text:.600}", flush=True)
    sys.exit(failed)

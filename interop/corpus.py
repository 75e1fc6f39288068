"""The corpus in `corpus/`: every field of every kind with a usual, an empty, an extreme and a wrong value.

The notation is told in README.md; `examples/tests/corpus` reads the same files and holds the library against them.
"""

import pathlib
import re

FOLDER = pathlib.Path(__file__).resolve().parent / "corpus"
KINDS = (
    "VirtualService",
    "DestinationRule",
    "ServiceEntry",
    "WorkloadEntry",
    "WorkloadGroup",
    "Sidecar",
    "Service",
    "PeerAuthentication",
    "RequestAuthentication",
    "AuthorizationPolicy",
    "HTTPRoute",
    "GRPCRoute",
    "ReferenceGrant",
    "Telemetry",
    # Our own, and the filters of an application's: what others are not told of must not be in their way.
    "RateLimit",
    "Overload",
    "Quota",
    "RequestRules",
    "WasmPlugin",
)
WORDS = [line.split(" ", 1) for line in (FOLDER / "words.txt").read_text().splitlines()]


def expand(text, name):
    for word, meaning in WORDS:
        text = text.replace(word, meaning)
    # Nobody listens there: what is asked is whether the resources are taken.
    text = text.replace("$NAME", name).replace("$PORT1", "1").replace("$PORT2", "2")
    text = text.replace("$P", "ports: [{number: 80, name: http}]")
    return re.sub(r"\{\{(.)\*(\d+)\}\}", lambda found: found[1] * int(found[2]), text)


def places(template):
    """A traffic policy stands in four places."""
    if not template.startswith("$POLICY"):
        return [template]
    policy = template.removeprefix("$POLICY")
    of_port = "{portLevelSettings: [{port: {number: 80}, " + policy[1:] + "]}"
    rule = "{$R, subsets: [$S], trafficPolicy: %s}"
    subset = "{$R, subsets: [{name: s, labels: {version: v1}, trafficPolicy: %s}]}"
    return [rule % policy, rule % of_port, subset % policy, subset % of_port]


def cases():
    """For every case its name, what `validate` says of it, its objects, and the target that a client asks for."""
    for kind in KINDS:
        head, lines = (FOLDER / f"{kind}.txt").read_text().split("===\n")
        about, manifest = head.split("---\n", 1)
        target = re.search("^target: (.*)$", about, re.MULTILINE)[1]
        # A Sidecar has the same letter.
        initials = "svc" if kind == "Service" else "".join(letter for letter in kind if letter.isupper()).lower()
        number, templates = 0, []
        for line in lines.splitlines():
            if not line.startswith("  "):
                if line and not line.startswith("#"):
                    templates = places(line.split(": ", 1)[1])
                continue
            outcome, value = line[2:].split(" // ")[0].split(" ", 1)
            for template in templates:
                name = f"{initials}{number}"
                text = manifest.replace("$SPEC", template.replace("@", value))
                yield name, outcome, expand(text, name), expand(target, name)
                number += 1


def base():
    """The services behind the routes."""
    return expand((FOLDER / "base.yaml").read_text(), "up")

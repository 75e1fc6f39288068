"""Certificates of mesh-control's authority, for programs that do not ask for their own."""

import subprocess


def issue(suite, state, out, namespace, account):
    """Writes those of an account into a directory, which it returns; the authority is in `state`."""
    command = [suite.args.bin / "mesh-control", "ca", "issue", "--state-dir", state, "--out", out]
    identity = f"spiffe://cluster.local/ns/{namespace}/sa/{account}"
    subprocess.run([*command, "--identity", identity], check=True, timeout=30, capture_output=True)
    return out

"""Certificates for programs that do not ask for their own."""

import subprocess


def issue(suite, state, out, namespace, account):
    """Of mesh-control's authority: writes those of an account into a directory, which it returns; the authority is in `state`."""
    command = [suite.args.bin / "mesh-control", "ca", "issue", "--state-dir", state, "--out", out]
    identity = f"spiffe://cluster.local/ns/{namespace}/sa/{account}"
    subprocess.run([*command, "--identity", identity], check=True, timeout=30, capture_output=True)
    return out


def self_signed(folder, name, *extensions):
    """A certificate of nobody's authority but its own, and its key: both files."""
    files = [folder / f"{name}.crt", folder / f"{name}.key"]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    make += ["-subj", f"/CN={name}", *extensions, "-out", files[0], "-keyout", files[1]]
    subprocess.run(make, check=True, capture_output=True, timeout=60)
    return files


def signed(folder, name, *extensions):
    """A certificate by an authority of its own, for a client unless its extensions say more: its files, and the authority's."""
    root = self_signed(folder, f"{name}-root")
    files = [folder / f"{name}.crt", folder / f"{name}.key"]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    make += ["-addext", "basicConstraints=critical,CA:FALSE", *extensions, "-CA", root[0], "-CAkey", root[1], "-out", files[0], "-keyout", files[1]]
    subprocess.run(make, check=True, capture_output=True, timeout=60)
    return files, root[0]


def plugged_in(folder):
    """An authority to plug in with `serve --ca-dir`: the directory of its files."""
    root, secret = self_signed(folder, "root", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    authority = folder / "authority"
    authority.mkdir()
    for name in ("ca-cert", "cert-chain", "root-cert"):
        (authority / f"{name}.pem").write_text(root.read_text())
    key = authority / "ca-key.pem"
    key.touch(0o600)
    key.write_text(secret.read_text())
    return authority

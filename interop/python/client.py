"""A gRPC client as Python users write it: a channel to `xds:///...` and a call, again and again.

Every call prints one line of JSON: as whom it called, how it ended, and which backend answered. Every third call
says that it is jason's. It ends when its standard input does.
"""

import json
import sys
import threading
import time

import grpc
import grpc.experimental

TARGET, METHOD, PAUSE = sys.argv[1], sys.argv[2], float(sys.argv[3])


def main():
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    # With certificates, as the control plane says; what it says nothing of is called in plaintext.
    fallback = grpc.experimental.insecure_channel_credentials()
    channel = grpc.secure_channel(TARGET, grpc.xds_channel_credentials(fallback))
    # Messages travel as bytes: what is tested is the way there.
    method = channel.unary_unary(METHOD)
    number = 0
    while not ended.wait(PAUSE):
        number += 1
        user = "guest" if number % 3 else "jason"
        started = time.monotonic()
        line = {"user": user, "status": "OK", "backend": "", "error": ""}
        try:
            _, call = method.with_call(b"", timeout=5, metadata=(("end-user", user),))
            line["backend"] = dict(call.initial_metadata()).get("x-mesh-backend", "")
        except grpc.RpcError as error:
            line["status"], line["error"] = error.code().name, error.details()
        line["ms"] = round((time.monotonic() - started) * 1000, 1)
        print(json.dumps(line), flush=True)
    channel.close()


main()

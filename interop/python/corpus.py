"""One call to each of many targets, so that a gRPC client asks for their resources and judges them.

The targets stand in a file, one a line. Prints one line of JSON for each: how the call ended. Nobody listens behind them,
so that a call that gets as far as a connection is as good as one that is answered. It ends when its standard input does.
"""

import json
import pathlib
import sys

import grpc

# All channels of a process share one stream to the management server.
AT_ONCE = 32
TIMEOUT = 20.0


def ended(target, call):
    try:
        call.result()
        status, error = "OK", ""
    except grpc.RpcError as failure:
        status, error = failure.code().name, failure.details()
    print(json.dumps({"target": target, "status": status, "error": error}), flush=True)


def main():
    targets = pathlib.Path(sys.argv[1]).read_text().split()
    channels = []
    for start in range(0, len(targets), AT_ONCE):
        calls = []
        for target in targets[start : start + AT_ONCE]:
            channels.append(grpc.insecure_channel(f"xds:///{target}"))
            method = channels[-1].unary_unary("/corpus.Service/Call")
            calls.append((target, method.future(b"", timeout=TIMEOUT)))
        for target, call in calls:
            ended(target, call)
    print("all asked", flush=True)
    sys.stdin.read()
    for channel in channels:
        channel.close()


main()

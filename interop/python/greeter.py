"""A program of grpcio, without xDS and without TLS, that serves and calls, and knows nothing of any mesh.

    greeter.py PORT TARGET METHOD

`mesh.test.Greeter/Hello` is answered with who its caller is, and `mesh.test.Greeter/Call` with what METHOD of TARGET answers. A message
is a text in its first field.
"""

import concurrent.futures
import sys

import grpc

PORT, TARGET, METHOD = sys.argv[1:4]


def text(value):
    """A message of protobuf whose field 1 is this."""
    data, length = value.encode(), b""
    rest = len(data)
    while rest > 0x7F:
        length, rest = length + bytes([rest & 0x7F | 0x80]), rest >> 7
    return b"\x0a" + length + bytes([rest]) + data


def hello(_, context):
    return text(dict(context.invocation_metadata()).get("x-forwarded-client-cert", "nobody"))


def main():
    with grpc.insecure_channel(TARGET) as channel:
        call = channel.unary_unary(METHOD)
        handlers = {
            "Hello": grpc.unary_unary_rpc_method_handler(hello),
            "Call": grpc.unary_unary_rpc_method_handler(lambda request, _: call(request, timeout=10)),
        }
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("mesh.test.Greeter", handlers),))
        server.add_insecure_port(f"127.0.0.1:{PORT}")
        server.start()
        server.wait_for_termination()


main()

"""A gRPC server as Python users write it with xDS: it takes its listener, and so its security, from the control plane.

It answers every call, and prints one line of JSON for each: whom the certificate of the caller names. It ends when its
standard input does.
"""

import concurrent.futures
import json
import sys

import grpc

ADDRESS, METHOD = sys.argv[1], sys.argv[2]


def answer(request, context):
    names = context.auth_context().get("x509_subject_alternative_name", [])
    print(json.dumps({"peer": [name.decode() for name in names]}), flush=True)
    return b""


def main():
    service, method = METHOD.strip("/").split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), xds=True)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    credentials = grpc.xds_server_credentials(grpc.insecure_server_credentials())
    port = server.add_secure_port(ADDRESS, credentials)
    server.start()
    print(f"listening on {port}", flush=True)
    sys.stdin.read()
    server.stop(0)


main()

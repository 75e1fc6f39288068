"""A server that tells whoever calls it what it was told, over HTTP/1.1 and HTTP/2, and answers as the request asks for (`x-answer`)."""

import json
import socket
import threading
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import raw

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# What every answer has, so that it is told from one of a proxy's own.
MARK = "x-echo: 1\r\n"
# Answers by name: each is all of its bytes, where %s is what was seen, and %d its length.
ANSWERS = {
    "plain": f"HTTP/1.1 200 OK\r\n{MARK}content-length: %d\r\n\r\n%s",
    "created": f"HTTP/1.1 201 Made\r\n{MARK}location: http://elsewhere.example/a?b\r\ncontent-length: %d\r\n\r\n%s",
    "found": f"HTTP/1.1 302 Found\r\n{MARK}location: /there\r\ncontent-length: 0\r\n\r\n",
    "unavailable": f"HTTP/1.1 503 Service Unavailable\r\n{MARK}content-length: %d\r\n\r\n%s",
    "later": f"HTTP/1.1 503 Service Unavailable\r\n{MARK}retry-after: 7\r\ncontent-length: 0\r\n\r\n",
    "teapot": f"HTTP/1.1 418 I'm a teapot\r\n{MARK}content-length: %d\r\n\r\n%s",
    "odd-status": f"HTTP/1.1 299\r\n{MARK}content-length: 0\r\n\r\n",
    "status-999": f"HTTP/1.1 999 What\r\n{MARK}content-length: 0\r\n\r\n",
    "none": f"HTTP/1.1 204 No Content\r\n{MARK}\r\n",
    "not-modified": f"HTTP/1.1 304 Not Modified\r\n{MARK}etag: \"a\"\r\n\r\n",
    "partial": f"HTTP/1.1 206 Partial Content\r\n{MARK}content-range: bytes 0-1/9\r\ncontent-length: 2\r\n\r\nab",
    "unauthorized": f"HTTP/1.1 401 Unauthorized\r\n{MARK}www-authenticate: Basic realm=\"a\"\r\ncontent-length: 0\r\n\r\n",
    "chunked": f"HTTP/1.1 200 OK\r\n{MARK}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;a=b\r\nde\r\n0\r\n\r\n",
    "trailers": f"HTTP/1.1 200 OK\r\n{MARK}transfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n3\r\nabc\r\n0\r\nx-end: 1\r\n\r\n",
    "to-end": f"HTTP/1.1 200 OK\r\n{MARK}\r\nall of it",
    "http10": f"HTTP/1.0 200 OK\r\n{MARK}content-length: 3\r\n\r\nold",
    "interim": f"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n{MARK}content-length: 2\r\n\r\nok",
    "continue": f"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n{MARK}content-length: 2\r\n\r\nok",
    "hop": f"HTTP/1.1 200 OK\r\n{MARK}connection: x-hidden\r\nx-hidden: 1\r\nkeep-alive: timeout=5\r\ncontent-length: 0\r\n\r\n",
    "proxy": f"HTTP/1.1 200 OK\r\n{MARK}proxy-connection: close\r\nproxy-authenticate: Basic\r\nupgrade: h2c\r\ncontent-length: 0\r\n\r\n",
    "closing": f"HTTP/1.1 200 OK\r\n{MARK}connection: close\r\ncontent-length: %d\r\n\r\n%s",
    "twice": f"HTTP/1.1 200 OK\r\n{MARK}set-cookie: a=1\r\nset-cookie: b=2\r\nx-a: 1\r\nx-a: 2\r\nvary: a\r\nvary: b\r\ncontent-length: 0\r\n\r\n",
    "told": f"HTTP/1.1 200 OK\r\n{MARK}server: own\r\nvia: 1.1 own\r\nx-powered-by: own\r\nalt-svc: h3=\":1\"\r\ncontent-length: 0\r\n\r\n",
    "envoy": f"HTTP/1.1 200 OK\r\n{MARK}x-envoy-immediate-health-check-fail: 1\r\nx-envoy-degraded: 1\r\nx-envoy-own: 1\r\ncontent-length: 0\r\n\r\n",
    "underscore": f"HTTP/1.1 200 OK\r\n{MARK}x_under: 1\r\ncontent-length: 0\r\n\r\n",
    "latin": f"HTTP/1.1 200 OK\r\n{MARK}x-latin: \xe9\xff\r\ncontent-length: 0\r\n\r\n",
    "empty-field": f"HTTP/1.1 200 OK\r\n{MARK}x-empty:\r\ncontent-length: 0\r\n\r\n",
    "large-head": f"HTTP/1.1 200 OK\r\n{MARK}x-large: {'a' * 20000}\r\ncontent-length: 0\r\n\r\n",
    "large": f"HTTP/1.1 200 OK\r\n{MARK}content-length: 300000\r\n\r\n{'abc' * 100000}",
    "typed": f"HTTP/1.1 200 OK\r\n{MARK}content-type: application/json; charset=utf-8\r\ncache-control: no-store\r\ncontent-length: 2\r\n\r\n" + "{}",
    # What no server should say.
    "length-text": f"HTTP/1.1 200 OK\r\n{MARK}content-length: abc\r\n\r\nabc",
    "length-twice": f"HTTP/1.1 200 OK\r\n{MARK}content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "length-and-chunked": f"HTTP/1.1 200 OK\r\n{MARK}content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n",
    "chunk-broken": f"HTTP/1.1 200 OK\r\n{MARK}transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    "field-broken": f"HTTP/1.1 200 OK\r\n{MARK}x-a b: 1\r\ncontent-length: 0\r\n\r\n",
    "nul": f"HTTP/1.1 200 OK\r\n{MARK}x-nul: a\0b\r\ncontent-length: 0\r\n\r\n",
    "garbage": "what is this\r\n\r\n",
    "cut": f"HTTP/1.1 200 OK\r\n{MARK}content-length: 100\r\n\r\nabc",
    "nothing": "",
}
# After these the connection ends, as they say or because nobody could tell where they end.
ENDS = {"to-end", "http10", "closing", "length-text", "length-twice", "length-and-chunked", "chunk-broken", "field-broken", "nul",
    "garbage"}
ENDS |= {"cut", "nothing"}


class Echo:
    """At a port of its own, in threads of their own."""

    def __init__(self):
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.listening.getsockname()[1]
        # How often something was asked for, by the name that it has itself.
        self.counts, self.lock = {}, threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listening.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        stream = raw.Stream(connection)
        with connection:
            try:
                while len(stream.bytes) < len(PREFACE) and PREFACE.startswith(stream.bytes):
                    stream.more()
                if stream.bytes.startswith(PREFACE):
                    self.http2(connection, stream.bytes)
                while self.http1(connection, stream):
                    pass
            except (raw.Closed, OSError, ValueError, h2.exceptions.ProtocolError):
                pass

    def http1(self, connection, stream):
        """Answers one request; whether the connection goes on."""
        line, fields = stream.head()
        named = dict(fields)
        if named.get("upgrade", "").lower() == "websocket":
            connection.sendall(f"HTTP/1.1 101 Switching Protocols\r\n{MARK}connection: upgrade\r\nupgrade: websocket\r\n\r\nhello".encode())
            return False
        if named.get("expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body, trailers = stream.body(fields, is_request=True)
        seen = {"line": line, "headers": fields, "body": body.decode("latin1"), "trailers": trailers}
        how = self.how(named)
        text = ANSWERS[how]
        # What is seen is not told to HEAD, and so is no length of it.
        told = "{}" if line.startswith("HEAD ") else json.dumps(seen)
        text = text.replace("%d", str(len(told))).replace("%s", told).encode("latin1")
        if line.startswith("HEAD "):
            heads = 2 if text.startswith(b"HTTP/1.1 1") else 1
            text = b"\r\n\r\n".join([*text.split(b"\r\n\r\n")[:heads], b""])
        connection.sendall(text)
        return how not in ENDS and named.get("connection") != "close"

    def how(self, named):
        """Which answer a request asks for, once it has waited for as long as it asks."""
        time.sleep(float(named.get("x-wait", 0)))
        if times := int(named.get("x-fails", 0)):
            with self.lock:
                count = self.counts[named["x-key"]] = self.counts.get(named["x-key"], 0) + 1
            return "unavailable" if count <= times else "plain"
        how = named.get("x-answer", "plain")
        return how if how in ANSWERS else "plain"

    def http2(self, connection, data):
        config = h2.config.H2Configuration(
            client_side=False, header_encoding=None, validate_inbound_headers=False, validate_outbound_headers=False
        )
        server, seen = h2.connection.H2Connection(config), {}
        server.initiate_connection()
        while data:
            for event in server.receive_data(data):
                match event:
                    case h2.events.RequestReceived():
                        fields = [(name.decode("latin1"), value.decode("latin1")) for name, value in event.headers]
                        pseudo = " ".join(sorted(f"{name}={value}" for name, value in fields if name.startswith(":")))
                        fields = [one for one in fields if not one[0].startswith(":")]
                        seen[event.stream_id] = {"line": pseudo, "headers": fields, "body": "", "trailers": []}
                    case h2.events.DataReceived():
                        seen[event.stream_id]["body"] += event.data.decode("latin1")
                        server.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    case h2.events.TrailersReceived():
                        seen[event.stream_id]["trailers"] = [(n.decode("latin1"), v.decode("latin1")) for n, v in event.headers]
                    case h2.events.StreamEnded():
                        self.answer2(server, event.stream_id, seen.pop(event.stream_id))
            connection.sendall(server.data_to_send())
            data = connection.recv(65536)
        raise raw.Closed("closed")

    def answer2(self, server, stream, seen):
        """As gRPC, with the status that is asked for; as HTTP where nothing is gRPC."""
        named = dict(seen["headers"])
        time.sleep(float(named.get("x-wait", 0)))
        told = json.dumps(seen).encode()
        if not named.get("content-type", "").startswith("application/grpc"):
            server.send_headers(stream, [(":status", "200"), ("x-echo", "1")])
            server.send_data(stream, told, end_stream=True)
            return
        status = ("grpc-status", named.get("x-grpc", "0"))
        head = [(":status", "200"), ("content-type", "application/grpc"), ("x-echo", "1")]
        if named.get("x-answer") == "trailers-only":
            server.send_headers(stream, [*head, status, ("grpc-message", "a%20b")], end_stream=True)
            return
        server.send_headers(stream, head)
        server.send_data(stream, b"\0" + len(told).to_bytes(4, "big") + told)
        server.send_headers(stream, [status, ("x-end", "1")], end_stream=True)

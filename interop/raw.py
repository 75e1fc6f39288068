"""HTTP as it is on the wire: what is said goes out byte by byte, and what is heard is told as it came. For requests that no library would
send, and for whoever wants to know what came of them.
"""

import contextlib
import socket
import ssl

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

PATIENCE = 20.0
# Who asks. An Envoy tells its own address in the place of 127.0.0.1.
CLIENT = "127.0.0.2"
# A frame of HTTP/2.
LARGEST = 16384


class Closed(Exception):
    """The other end has said all that it had to say."""


class Stream:
    """A connection, read as HTTP/1.1."""

    def __init__(self, connection):
        self.connection, self.bytes = connection, b""

    def more(self):
        try:
            got = self.connection.recv(65536)
        except (ConnectionError, ssl.SSLError) as error:
            raise Closed(type(error).__name__) from None
        if not got:
            raise Closed("closed")
        self.bytes += got

    def until(self, mark):
        while mark not in self.bytes:
            self.more()
        found, self.bytes = self.bytes.split(mark, 1)
        return found

    def exactly(self, length):
        while len(self.bytes) < length:
            self.more()
        found, self.bytes = self.bytes[:length], self.bytes[length:]
        return found

    def to_end(self):
        try:
            while True:
                self.more()
        except Closed:
            found, self.bytes = self.bytes, b""
            return found

    def head(self):
        """The first line, and the fields by names in lower case."""
        first, *lines = self.until(b"\r\n\r\n").decode("latin1").split("\r\n")
        return first, [field(line) for line in lines]

    def body(self, fields, is_request):
        """What follows a head, and the fields behind it."""
        named = dict(fields)
        if "transfer-encoding" in named:
            return self.chunks()
        if "content-length" in named:
            return self.exactly(int(named["content-length"])), []
        return (b"" if is_request else self.to_end()), []

    def chunks(self):
        body = b""
        while size := int(self.until(b"\r\n").split(b";")[0], 16):
            body += self.exactly(size)
            self.exactly(2)
        trailers = []
        while line := self.until(b"\r\n"):
            trailers.append(field(line.decode("latin1")))
        return body, trailers


def field(line):
    name, _, value = line.partition(":")
    return name.lower(), value.strip(" \t")


class Tls:
    """How a client speaks TLS: the name that it asks for, what it would speak, and whom it says it is."""

    def __init__(self, name, alpn=(), own=None, versions=None):
        self.name, self.alpn, self.own, self.versions = name, alpn, own, versions

    def wrap(self, connection):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self.alpn:
            context.set_alpn_protocols(list(self.alpn))
        if self.versions:
            # As low as openssl goes.
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            context.minimum_version, context.maximum_version = self.versions
        if self.own:
            context.load_cert_chain(*map(str, self.own))
        return context.wrap_socket(connection, server_hostname=self.name)


def connect(port, tls=None):
    connection = socket.socket()
    connection.settimeout(PATIENCE)
    # What is left of it is in no server's way that binds its port.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.bind((CLIENT, 0))
    connection.connect(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tls.wrap(connection) if tls else connection


def answer(stream, is_head):
    """The next answer, with what came before it."""
    interim = []
    while True:
        first, fields = stream.head()
        status = int(first.split(" ")[1])
        if status >= 200 or status == 101:
            break
        interim.append(status)
    has_body = not (is_head or status in (101, 204, 304))
    body, trailers = stream.body(fields, is_request=False) if has_body else (b"", [])
    return {"interim": interim, "version": first[:8], "status": status, "headers": fields, "body": body.decode("latin1"),
        "trailers": trailers}


def http1(port, said, tls=None, answers=1, is_head=False, then=None):
    """What is answered to these bytes, and what becomes of the connection: `then` is a request that comes after them, on the same one.
    Without a number of answers all are read to the end of the connection."""
    heard = {"answers": [], "then": "closed"}
    try:
        connection = connect(port, tls)
    except OSError as error:
        return heard | {"then": f"no connection: {type(error).__name__}"}
    with connection:
        if tls:
            heard["alpn"] = connection.selected_alpn_protocol()
        stream = Stream(connection)
        try:
            # Who is refused while he still speaks has an answer to read all the same.
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                connection.sendall(said)
            while answers is None or len(heard["answers"]) < answers:
                heard["answers"].append(answer(stream, is_head))
            last = heard["answers"][-1]
            if last["status"] == 101:
                heard["then"] = f"speaks {stream.exactly(5)}"
            elif then is not None and "close" not in [value.lower() for name, value in last["headers"] if name == "connection"]:
                connection.sendall(then)
                heard["then"] = f"goes on with {answer(stream, False)['status']}"
            elif more := stream.to_end():
                heard["then"] = f"closed after {more}"
        except Closed:
            pass
        except TimeoutError:
            heard["then"] = "silence"
        except OSError:
            pass
    return heard


def http2(port, headers, body=b"", trailers=(), tls=None):
    """The answer to one request, and what becomes of its stream."""
    heard = {"answers": [], "then": "closed"}
    try:
        connection = connect(port, tls)
    except OSError as error:
        return heard | {"then": f"no connection: {type(error).__name__}"}
    # Whatever is wrong with it is for the other end to find.
    config = h2.config.H2Configuration(
        header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False, validate_inbound_headers=False
    )
    client = h2.connection.H2Connection(config)
    client.initiate_connection()
    client.send_headers(1, headers, end_stream=not (body or trailers))
    for start in range(0, len(body), LARGEST):
        rest = body[start:]
        client.send_data(1, rest[:LARGEST], end_stream=not trailers and len(rest) <= LARGEST)
    if trailers:
        client.send_headers(1, list(trailers), end_stream=True)
    got = {"interim": [], "version": "HTTP/2", "status": None, "headers": [], "body": b"", "trailers": []}
    with connection:
        try:
            connection.sendall(client.data_to_send())
            while heard["then"] == "closed" and (data := connection.recv(65536)):
                for event in client.receive_data(data):
                    note(event, got, heard)
                    if isinstance(event, h2.events.DataReceived):
                        client.acknowledge_received_data(event.flow_controlled_length, 1)
                connection.sendall(client.data_to_send())
        except TimeoutError:
            heard["then"] = "silence"
        except (OSError, h2.exceptions.ProtocolError):
            pass
    if got["status"] is not None:
        heard["answers"].append(got | {"body": got["body"].decode("latin1")})
    return heard


def note(event, got, heard):
    def fields(event):
        return [(name.decode("latin1"), value.decode("latin1")) for name, value in event.headers]

    match event:
        case h2.events.ResponseReceived():
            got["headers"] = fields(event)
            got["status"] = int(dict(got["headers"])[":status"])
        case h2.events.InformationalResponseReceived():
            got["interim"].append(int(dict(fields(event))[":status"]))
        case h2.events.DataReceived():
            got["body"] += event.data
        case h2.events.TrailersReceived():
            got["trailers"] = fields(event)
        case h2.events.StreamEnded():
            heard["then"] = "ended"
        case h2.events.StreamReset():
            # A stream that has ended is reset where its request had not.
            heard["then"] = heard["then"] if heard["then"] == "ended" else "reset"
        case h2.events.ConnectionTerminated():
            heard["then"] = "gone away" if heard["then"] != "ended" else "ended"

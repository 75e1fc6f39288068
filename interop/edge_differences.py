"""Where an Envoy and `mesh-gateway` differ, and why. Each reason has kinds of requests and what differs (Envoy's | ours), with `*` for
whatever is there. Ours is the one that refuses, or nobody is let in, led elsewhere or told more by it.
"""

import re

ALL = {
    # What ours refuses.
    "what is no character of a target is no target: an Envoy escapes it": [("target /a<b>", "statuses: [200] | [400]"),
        ("target /a`b", "statuses: [200] | [400]"), ("h2 path '/aé'", "statuses: [200] | []")],
    "a host has no user, and its port is one": [("absolute of a user", "statuses: [200] | [400]"),
        ("host plain.example:*", "statuses: [200] | [400]")],
    "a malformed host is 400 and not 404; of two hosts none counts": [("host *", "statuses: [404] | [400]"),
        ("h2 * :authority", "statuses: [] | [400]"), ("h2 host 'me@*", "statuses: [] | [400]"), ("h2 two hosts*", "statuses: [] | [400]")],
    "lines are what RFC 9112 says: one space, no folds, no bare CR": [
        ("version HTTP/1.1 ", "statuses: [200] | [400]"),
        ("line of three spaces", "statuses: [200] | [400]"),
        ("a target of tabs", "statuses: [200] | [400]"),
        ("field of CR", "statuses: [200] | [400]"),
        ("field folded*", "statuses: [200] | [400]"),
        ("body length folded", "statuses: [200] | [400]"),
        ("body chunked folded", "statuses: [200, 200, 200] | [400]"),
        ("body chunked behind CR", "statuses: [200, 400] | [400]"),
        ("body chunk longer than it says", "statuses: [200] | [400]"),
    ],
    "the connection names no field that says where a message ends, and nothing that is no name": [(f"connection: {name}",
        "statuses: [200] | [400]") for name in ("content-length", "transfer-encoding", "a b")],
    "in HTTP/2 a value has no spaces around it, and te is in lower case": [("h2 field x-a: ' 1 '", "statuses: [200] | [400]"),
        ("h2 field te: 'Trailers'", "statuses: [200] | []")],
    "methods of HTTP/2 are told apart by case: what is not in capitals is refused": [("h2 method 'get'", "statuses: [200] | [400]")],
    "who agrees on no protocol of TLS is refused (RFC 7301, 3.2)": [(f"tls alpn {name}", "statuses: [200] | []") for name in ("http/1.0",
        "foo", "istio", "h3")],
    "a path that can be read in two ways is refused where policies guard": [("guarded *..;/admin", "statuses: [403] | [400]")],
    # Refused by both, in other words.
    "426 to whatever is not HTTP/1.1, and 501 to codings, are an Envoy's": [("version *", "statuses: [426] | [400]"),
        ("host none, HTTP/1.0", "statuses: [426] | [404]"), ("body chunked, HTTP/1.0", "statuses: [426] | [400]"),
        ("body chunked *", "statuses: [501] | [400]")],
    "CONNECT is refused, and not just unknown": [("method CONNECT", "statuses: [404] | [405]")],
    "what is no path is known of nobody": [("target a", "statuses: [400] | [404]"), ("h2 path '*'", "statuses: [] | [400]")],
    "a head that is too large is told so": [("h2 head of 70000", "statuses: [] | [431]")],
    "a server that answers what is no HTTP has failed like any other": [("*answer *", "statuses: [502] | [503]")],
    "an answer that breaks off in its first bytes is none": [("h2 answer *", "statuses: [200] | []")],
    "another certificate's host is 421 (RFC 9110, 15.5.20): browsers ask again": [("tls *for another host *", "statuses: [404] | [421]")],
    "no route is UNAVAILABLE, as to gRPC's own clients, and a timeout DEADLINE_EXCEEDED": [("grpc of other.example",
        "header grpc-status: ['12'] | ['14']"), ("timeout of gRPC", "header grpc-status: ['14'] | ['4']")],
    "a refused token is told by no realm": [("token *", "header www-authenticate: *")],
    "who is limited is told so": [("limited", "2 header x-envoy-ratelimited: None | ['true']")],
    # What ours takes.
    "HTTP/1.0 is spoken": [(f"{kind}", f"statuses: [426] | [{status}]") for kind in ("version HTTP/1.0", "version 1.0 kept",
        "body expected, HTTP/1.0", "answer * to HTTP/1.0", "websocket of HTTP/1.0", "redirect of HTTP/1.0") for status in (200, 204, 301)],
    "methods need not be known: policies decide by each": [(f"method '{name}'", "statuses: [400] | [200]") for name in ("M-SEARCH", "FOO",
        "AAAAAAAAAA")],
    "what follows # is no part of a target, to nobody": [("target *#*", "statuses: [400] | [200]"),
        ("h2 path '/a#b'", "statuses: [400] | [200]"), ("match query a=1#b", "statuses: [400] | [200]"),
        ("guarded */admin#x", "statuses: [400] | [403]")],
    "the scheme is what is spoken, whatever a target says": [("absolute https", "statuses: [403] | [200]"),
        ("absolute of another scheme", "statuses: [400] | [200]"), ("h2 scheme ''", "statuses: [] | [200]")],
    "a target without a path is / (RFC 9110, 4.2.3)": [("absolute with a query alone", "statuses: [404] | [200]")],
    "heads may have 64 KiB, with 32 bytes more for each field of HTTP/2, however many there are": [("head of 62000",
        "statuses: [431] | [200]"), ("h2 fields *", "statuses: [] | [200]")],
    "one length said twice is one (RFC 9112, 6.3)": [("body length twice", "statuses: [400] | [200]")],
    "chunks count, a length beside them goes no further, and the connection ends (RFC 9112, 6.3)": [("body chunked *",
        "statuses: [400] | [200]")],
    "of an answer with both, the chunks count, too": [("answer length-and-chunked", "statuses: [502] | [200]"),
        ("h2 answer length-and-chunked", "statuses: [502] | [200]")],
    "an upgrade to nothing that is spoken here is passed over (RFC 9110, 7.8)": [("websocket and more", "statuses: [403] | [200]"),
        ("upgrade to nothing known", "statuses: [403] | [200]")],
    "who is said to have asked is set anew, whatever the connection names": [("connection: x-forwarded-*", "statuses: [400] | [200]")],
    "the scheme of a token is named in any case (RFC 9110, 11.1)": [("token in lower case", "statuses: [403] | [200]")],
    "the dot at the end of a name is no part of it": [("tls secure.example.", "statuses: [] | [404]")],
    "a body that nobody takes is read to its end, so that the connection goes on": [
        (kind, "then: closed | goes on with 200")
        for kind in ("body that nobody takes", "body expected of nobody", "redirect of POST", "to https POST", "direct of a body",
            "websocket of nobody", "guarded expected", "guarded websocket")
    ],
    # What goes on.
    "a path goes on as it came, but for what makes it canonical": [("target *", "seen line: GET *")],
    "what only a proxy may say goes no further, known or not": [("field x-envoy-*", "seen x-envoy-*: * | None")],
    "fields of the connection end with it, those of proxies, too (RFC 9110, 7.6.1 and 11.7)": [("hop *", "seen * | None"),
        ("h2 field *", "seen * | None"), ("* proxy", "header proxy-authenticate: * | None"), ("* hop", "header x-hidden: * | None")],
    "trailers go on": [("body of chunks with trailers", "seen trailers: *"), ("h2 answer trailers", "trailers: *")],
    "who expects 100 is told by the server behind": [("*expect*", "interim: [100] | []"), ("*expect*", "seen expect: None | *")],
    "gRPC is HTTP/2 to whatever port: without trailers it is none": [(kind, difference) for kind in ("fault * of gRPC",
        "grpc to HTTP") for difference in ("header content-type: None | *", "seen host: * | None", "seen line: *",
        "seen transfer-encoding: * | None", "trailers: [] | *")],
    "the time that a call has left is told, and not that which it had": [("grpc metadata", "seen grpc-timeout: *")],
    "what a path or a host was before is told to nobody": [("*", "seen x-envoy-original-path: * | None"),
        ("*", "seen x-envoy-original-host: * | None")],
    "queries are joined by one &": [("rewrite /query?y", "seen line: GET /else?x=1?y HTTP/1.1 | GET /else?x=1&y HTTP/1.1")],
    "of a certificate its hash is told alone": [("tls *", "seen x-forwarded-client-cert: *")],
    "the standard port of a scheme is not named, nor is that of another scheme": [("redirect /*", "header location: *:80/* | *"),
        ("to https *", "header location: *:80/* | *")],
    "a body whose length is known goes on with it, of gRPC, too": [(f"grpc-web {name}", "seen content-length: None | ['7']") for name in (
        "over http1", "of another status")],
    "an answer without a body to HEAD says so": [("redirect of HEAD", "header content-length: None | ['0']"),
        ("direct /none to HEAD", "header content-length: None | ['0']")],
}


def reason(kind, difference):
    """The first one; none where nobody knows."""
    return next((why for why, places in ALL.items() if any(fits(k, kind) and fits(d, difference) for k, d in places)), None)


def fits(pattern, text):
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None

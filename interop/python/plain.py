"""A program of Python's standard library that serves and calls HTTP/1.1, and knows nothing of any mesh.

    plain.py PORT NAME

`/who` is answered with what the request looks like here. `/call?url=URL` is answered with what that URL is, as urllib gets it: by the
proxy of the environment. SIGTERM ends it with the exit code 3.
"""

import http.server
import json
import signal
import sys
import urllib.parse
import urllib.request

PORT, NAME = int(sys.argv[1]), sys.argv[2]


class Plain(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        asked = urllib.parse.parse_qs(url.query).get("url")
        if url.path != "/call" or not asked:
            self.answer(200, {"name": NAME, "path": self.path, "headers": dict(self.headers.items())})
            return
        # What a program hands on of the requests that it works for.
        handed_on = {name: self.headers[name] for name in ("x-user", "traceparent") if name in self.headers}
        try:
            with urllib.request.urlopen(urllib.request.Request(asked[0], headers=handed_on), timeout=10) as answer:
                self.answer(answer.status, {"name": NAME, "called": json.loads(answer.read())})
        except urllib.error.HTTPError as error:
            self.answer(error.code, {"name": NAME, "error": error.read().decode()})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Plain).serve_forever()

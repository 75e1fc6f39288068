"""Random route tables, as users write them, and requests that come close to what they ask for.

Everything is drawn from the dice that are handed in, so that a seed makes the same tables and the same requests.
"""

import string

# Destinations: services with endpoints of their own, and by which parts of them there are clusters.
PLAIN = ["d0.dest.example", "d1.dest.example", "d2.dest.example"]
TWO_PORTS = "two.dest.example"
SUBSETS = "sub.dest.example"
SERVICES = ["b0", "b1"]
# What is behind the hosts of all tables.
OWN = "own"

# Who calls: a namespace and labels.
SOURCES = {"web": ("default", {"app": "web", "tier": "front"}), "batch": ("other", {"app": "batch"})}
SOURCE_LABELS = [{"app": "web"}, {"app": "batch"}, {"tier": "front"}, {"app": "web", "tier": "back"}]

# Paths that rules name, and expressions with texts that they are for.
PATHS = ["/", "/a", "/a/", "/a/b", "/A/b", "/ab", "/api/v1", "/api/v1/", "/a//b", "/a%2Fb", "/a%20b", "/a;x=1", "/a.b", "/Ab/C"]
EXPRESSIONS = {
    "/a/.*": ["/a/", "/a/b", "/a/b/c", "/a//"],
    "/a|/b": ["/a", "/b"],
    "/[a-z]+": ["/a", "/abc"],
    ".*": ["/", "/a", "/%2F"],
    "/a.b": ["/a.b", "/axb", "/a/b"],
    "(?i)/api/V[0-9]+": ["/api/v1", "/API/V22"],
    "/items/([0-9]+)/(.*)": ["/items/7/", "/items/12/a/b"],
    "/a(/b)?": ["/a", "/a/b"],
    "/.*\\.html": ["/a.html", "/a/b.html"],
    "/a%2[fF]b": ["/a%2Fb", "/a%2fb"],
    "/\\w+/\\d": ["/a/1", "/a_b/2"],
}
SUBSTITUTIONS = [("^/a", "/b"), ("/", "/x/"), ("^/items/([0-9]+)/(.*)$", r"/\2/\1"), ("[a-z]+", r"\0\0"), ("b", "c"), ("%2F", "/")]
ASKED_PATHS = [
    *PATHS,
    "/b",
    "//",
    "//a",
    "/a///b",
    "/a%2fb",
    "/a/../b",
    "/a/./b",
    "/a/b/",
    "/API/v1",
    "/a%",
    "/a+b",
    "/items/7/x",
    "/*",
]
QUERIES = ["", "?", "?a=1", "?a=2", "?a", "?a=", "?b=1&a=1", "?a=1&a=2", "?a=2&a=1", "?A=1", "?a=%31", "?a=1%20", "?=1", "?a==1"]
QUERIES += ["?a=1&", "?&a=1", "?b=x&c=y", "?a=1;b=2", "?a=1?a=2", "?b=10", "?b=1&b=", "?c", "?a=1+1", "?%61=1", "?a=abc", "?x=/a/b"]

METHODS = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"]
HEADERS = ["x-a", "x-b", "X-Long-Name", "cookie", "content-type"]
VALUES = ["1", "one", "one two", "On", "a,b", "10", "a=b; c=d", "é", ""]
# What a match on a text may be, with texts that it is for.
TEXTS = {
    "exact": {value: [value] for value in VALUES if value},
    "prefix": {"o": ["one", "o"], "one": ["one", "one two"], "1": ["1", "10"], "a": ["a,b", "a"]},
    "regex": {
        "[0-9]+": ["1", "10"],
        ".*": ["", "one"],
        ".+": ["one", "1"],
        "one|1": ["one", "1"],
        "(?i)ON.*": ["one", "On"],
        "a.b": ["a,b", "a=b"],
        "a?": ["", "a"],
    },
}
REDIRECTS = [301, 302, 303, 307, 308]
BODIES = ["", "closed", "a\nb", '{"a": 1}']
ORIGINS = ["http://a.example", "http://b.example", "https://a.example"]

# What the servers behind add to every answer.
ANSWERED = {"x-up": "1", "x-gone": "2"}
REQUEST_NAMES, RESPONSE_NAMES = ["x-a", "x-set", "x-more"], ["x-new", "x-more"]
ADDED = {
    "request": ["1", "two words", "50%%", "a,b", "<%REQ(x-b)%>", "%REQ(:path)%", "%REQ(x-a)%,%REQ(:authority)%"],
    "response": ["1", "two words", "50%%", "a,b", "%RESPONSE_CODE%"],
}


class Table:
    """The rules of one host: its objects, how it is called, and what its rules ask for, each a function that makes a request meet it."""

    def __init__(self, host, names):
        self.host, self.names, self.objects, self.wishes = host, names, [], []


class Tables:
    def __init__(self, dice, ports, own):
        self.dice, self.ports, self.own = dice, ports, own

    def table(self, index):
        return self.dice.choice([self.virtual_service, self.virtual_service, self.http_route])(index)

    def some(self, probability):
        return self.dice.random() < probability

    # VirtualServices

    def virtual_service(self, index):
        host = f"t{index}.example"
        table = Table(host, [host])
        table.objects.append(self.entry(f"t{index}", host))
        rules = [self.rule(table, number) for number in range(self.dice.choice([1, 2, 3, 4, 6]))]
        spec = {"hosts": [host], "http": rules}
        table.objects.append(istio("VirtualService", f"t{index}", spec))
        return table

    def entry(self, name, host):
        """The service of a host, where requests go that no rule sends elsewhere."""
        ports = [{"number": port, "name": f"http-{number}", "protocol": "HTTP"} for number, port in enumerate(self.ports)]
        spec = {
            "hosts": [host],
            "resolution": "STATIC",
            "ports": ports,
            "endpoints": [endpoint(**{port["name"]: self.own for port in ports})],
        }
        return istio("ServiceEntry", name, spec)

    def rule(self, table, number):
        rule = {"name": f"r{number}"}
        matches = [self.match(table) for _ in range(self.dice.choice([0, 1, 1, 1, 2, 3]) if number else 1)]
        if matches:
            rule["match"] = matches
        self.action(rule)
        if self.some(0.35):
            rule["headers"] = self.header_operations(authority="authority" not in rule.get("rewrite", {}))
        if self.some(0.1):
            rule["corsPolicy"] = self.cors()
        return rule

    def match(self, table):
        dice, match, wishes = self.dice, {}, []
        if self.some(0.75):
            kind = dice.choice(["exact", "prefix", "prefix", "regex"])
            if kind == "regex":
                text = dice.choice(sorted(EXPRESSIONS))
                texts = EXPRESSIONS[text]
            else:
                text = dice.choice(PATHS)
                texts = [text] if kind == "exact" else [text, f"{text}x", f"{text}/x", text[:-1] or "/"]
            match["uri"] = {kind: text}
            if self.some(0.25):
                match["ignoreUriCase"] = True
                texts = [*texts, *(text.swapcase() for text in texts)]
            wishes.append(lambda request, texts=texts: request.update(path=dice.choice(texts)))
        if self.some(0.2):
            match["method"] = dice.choice(
                [{"exact": dice.choice(METHODS)}, {"prefix": "P"}, {"regex": "GET|PUT"}, {"exact": "get"}]
            )
            wishes.append(
                lambda request: request.update(
                    method=dice.choice(["GET", "PUT", "POST", match["method"].get("exact", "GET").upper()])
                )
            )
        if self.some(0.1):
            match["scheme"] = dice.choice(
                [{"exact": "http"}, {"exact": "http"}, {"exact": "https"}, {"prefix": "http"}, {"regex": "https?"}]
            )
        if self.some(0.12):
            name = table.names[0]
            match["authority"] = dice.choice(
                [
                    {"exact": name},
                    {"exact": f"{name}:{self.ports[0]}"},
                    {"prefix": name[:3]},
                    {"regex": f".*{name}(:[0-9]+)?"},
                    {"exact": "other"},
                ]
            )
        for field, chance in (("headers", 0.35), ("withoutHeaders", 0.2)):
            if self.some(chance):
                match[field] = {}
                for name in dice.sample(HEADERS, dice.choice([1, 1, 2])):
                    test, texts = self.text()
                    match[field][name.lower()] = test
                    wishes.append(lambda request, name=name, texts=texts: request["headers"].append((name, dice.choice(texts))))
        if self.some(0.3):
            match["queryParams"] = {}
            for name in dice.sample(["a", "b", "c", "a b"], dice.choice([1, 1, 2])):
                test, texts = self.text()
                match["queryParams"][name] = test
                wishes.append(lambda request, name=name, texts=texts: request["query"].append((name, dice.choice(texts))))
        if self.some(0.12):
            match["port"] = dice.choice(self.ports)
            wishes.append(lambda request, port=match["port"]: request.update(port=port))
        if self.some(0.12):
            match["sourceLabels"] = dice.choice(SOURCE_LABELS)
        if self.some(0.1):
            match["sourceNamespace"] = dice.choice(["default", "other", "third"])
        table.wishes.append(wishes)
        return match

    def text(self):
        """A match on a text, and texts that it is for, or nearly for."""
        if self.some(0.15):
            return {}, self.dice.sample(VALUES, 2)
        kind = self.dice.choice(sorted(TEXTS))
        text = self.dice.choice(sorted(TEXTS[kind]))
        texts = TEXTS[kind][text]
        return {kind: text}, [*texts, *texts, *(f"{text}x" for text in texts), *(text.swapcase() for text in texts)]

    def action(self, rule):
        kind = self.dice.random()
        if kind < 0.15:
            rule["redirect"] = self.redirect()
        elif kind < 0.25:
            rule["directResponse"] = {"status": self.dice.choice([200, 204, 403, 503, 599])}
            if rule["directResponse"]["status"] != 204 and self.some(0.7):
                rule["directResponse"]["body"] = {"string": self.dice.choice(BODIES)}
        else:
            count = self.dice.choice([1, 1, 1, 2, 3])
            rule["route"] = [{"destination": destination} for destination in self.destinations(count)]
            if count > 1:
                for to in rule["route"]:
                    to["weight"] = self.dice.choice([0, 0, 1, 50, 100])
                self.dice.choice(rule["route"])["weight"] = 70
            for to in rule["route"]:
                if self.some(0.2):
                    to["headers"] = self.header_operations(authority=count > 1)
            if self.some(0.35):
                rule["rewrite"] = self.rewrite()

    def destinations(self, count):
        first, second = self.ports
        all_of_them = [{"host": host} for host in PLAIN] + [{"host": host, "port": {"number": first}} for host in PLAIN]
        all_of_them += [{"host": TWO_PORTS, "port": {"number": port}} for port in (first, second)]
        all_of_them += [{"host": SUBSETS, "subset": subset} for subset in ("v1", "v2")]
        return self.dice.sample(all_of_them, count)

    def redirect(self):
        dice, redirect = self.dice, {}
        if self.some(0.6):
            redirect[dice.choice(["uri", "prefixRewrite"])] = dice.choice(["/", "/new", "/new/", "/a/b", "/new?x=1"])
        if self.some(0.4):
            redirect["authority"] = dice.choice(["new.example", "new.example:8080", "New.Example"])
        if self.some(0.3):
            redirect["scheme"] = dice.choice(["http", "https"])
        if self.some(0.3):
            redirect["port"] = dice.choice([80, 443, 8080])
        elif self.some(0.2):
            redirect["derivePort"] = dice.choice(["FROM_REQUEST_PORT", "FROM_PROTOCOL_DEFAULT"])
        if not redirect:
            redirect["uri"] = "/new"
        if self.some(0.5):
            redirect["redirectCode"] = dice.choice(REDIRECTS)
        return redirect

    def rewrite(self):
        dice, rewrite = self.dice, {}
        kind = dice.random()
        if kind < 0.5:
            rewrite["uri"] = dice.choice(["/", "/new", "/new/", "/n%2Fw", "/new?x=1"])
        elif kind < 0.8:
            expression, substitution = dice.choice(SUBSTITUTIONS)
            rewrite["uriRegexRewrite"] = {"match": expression, "rewrite": substitution}
        if kind > 0.7 or not rewrite:
            rewrite["authority"] = dice.choice(["new.example", "new.example:81", "New"])
        return rewrite

    def header_operations(self, authority):
        headers = {}
        if self.some(0.7):
            headers["request"] = self.operations("request", REQUEST_NAMES, ["x-a", "x-b", "X-Set", "cookie"])
            if authority and self.some(0.15):
                name = self.dice.choice(["host", "Host", ":authority"])
                headers["request"]["set"] = {**headers["request"].get("set", {}), name: "set.example"}
        if not headers or self.some(0.4):
            headers["response"] = self.operations("response", RESPONSE_NAMES, ["x-up", "x-gone", "x-never"])
        return headers

    def operations(self, of, written, removed):
        operations = {}
        for word in ("set", "add"):
            if self.some(0.45):
                names = self.dice.sample(written, self.dice.choice([1, 2]))
                operations[word] = {name: self.dice.choice(ADDED[of]) for name in names}
        if not operations or self.some(0.3):
            operations["remove"] = self.dice.sample(removed, self.dice.choice([1, 2]))
        return operations

    def cors(self):
        cors = {
            "allowOrigins": self.dice.choice([[{"exact": ORIGINS[0]}], [{"prefix": "http://"}], [{"regex": "https?://a\\..*"}]])
        }
        if self.some(0.6):
            cors["allowMethods"] = ["GET", "POST"]
        if self.some(0.4):
            cors["allowHeaders"] = ["x-a", "x-b"]
        if self.some(0.3):
            cors["exposeHeaders"] = ["x-up"]
        if self.some(0.3):
            cors["maxAge"] = "10m"
        if self.some(0.4):
            cors["allowCredentials"] = self.some(0.5)
        if self.some(0.3):
            cors["unmatchedPreflights"] = self.dice.choice(["FORWARD", "IGNORE"])
        return cors

    # HTTPRoutes

    def http_route(self, index):
        name = f"t{index}"
        if self.some(0.5):
            table = Table(
                f"{name}.default.svc.cluster.local", [f"{name}.default.svc.cluster.local", f"{name}.default.svc", f"{name}.default"]
            )
            ports = [{"port": port, "name": f"http-{number}"} for number, port in enumerate(self.ports)]
            table.objects.append(
                {"apiVersion": "v1", "kind": "Service", "metadata": meta(name), "spec": {"selector": {"app": name}, "ports": ports}}
            )
            table.objects.append(
                istio("WorkloadEntry", name, endpoint({"app": name}, **{port["name"]: self.own for port in ports}))
            )
            parent = {"group": "", "kind": "Service", "name": name}
        else:
            table = Table(f"{name}.example", [f"{name}.example"])
            table.objects.append(self.entry(name, table.host))
            parent = {"group": "networking.istio.io", "kind": "ServiceEntry", "name": name}
        for number in range(self.dice.choice([1, 1, 2])):
            of = {**parent, "port": self.dice.choice(self.ports)} if self.some(0.2) else parent
            rules = [self.http_rule(table) for _ in range(self.dice.choice([1, 2, 3]))]
            spec = {"parentRefs": [of], "rules": rules}
            route = {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "HTTPRoute",
                "metadata": meta(f"{name}-{number}"),
                "spec": spec,
            }
            table.objects.append(route)
        return table

    def http_rule(self, table):
        matches = [self.http_match(table) for _ in range(self.dice.choice([0, 1, 1, 2]))]
        rule = {"matches": matches} if matches else {}
        has_prefix = len(matches) < 2 and all(match.get("path", {}).get("type", "PathPrefix") == "PathPrefix" for match in matches)
        filters = []
        if self.some(0.2):
            filters.append({"type": "RequestRedirect", "requestRedirect": self.http_redirect(has_prefix)})
        else:
            rule["backendRefs"] = self.backends()
            if self.some(0.35):
                filters.append({"type": "URLRewrite", "urlRewrite": self.url_rewrite(has_prefix)})
        for kind, names, removed in (
            ("Request", REQUEST_NAMES, ["x-a", "X-B", "cookie"]),
            ("Response", RESPONSE_NAMES, ["x-up", "x-gone"]),
        ):
            if self.some(0.25):
                filters.append(self.modifier(kind, names, removed))
        if self.some(0.1):
            cors = {"allowOrigins": self.dice.choice([["http://a.example"], ["*"], ["https://*.example"]]), "allowMethods": ["GET"]}
            filters.append({"type": "CORS", "cors": cors})
        if filters:
            rule["filters"] = filters
        return rule

    def http_match(self, table):
        dice, match, wishes = self.dice, {}, []
        if self.some(0.8):
            kind = dice.choice(["Exact", "PathPrefix", "PathPrefix", "RegularExpression"])
            if kind == "RegularExpression":
                text = dice.choice(sorted(EXPRESSIONS))
                texts = EXPRESSIONS[text]
            else:
                text = dice.choice([path for path in PATHS if "//" not in path and "%2F" not in path])
                texts = [text, text, f"{text}/", f"{text}/b", f"{text}x", f"{text}//x", text.swapcase()]
            match["path"] = {"type": kind, "value": text}
            wishes.append(lambda request, texts=texts: request.update(path=dice.choice(texts)))
        if self.some(0.2):
            match["method"] = dice.choice(["GET", "POST", "HEAD"])
            wishes.append(lambda request: request.update(method=match["method"]))
        for field, chance, names in (("headers", 0.3, HEADERS), ("queryParams", 0.25, ["a", "b", "c"])):
            if not self.some(chance):
                continue
            match[field] = []
            for name in dice.sample(names, dice.choice([1, 1, 2])):
                kind = dice.choice(["exact", "regex"])
                text = dice.choice([text for text in sorted(TEXTS[kind]) if text])
                test = {"name": name, "value": text}
                if kind == "regex" or self.some(0.3):
                    test["type"] = {"exact": "Exact", "regex": "RegularExpression"}[kind]
                match[field].append(test)
                texts = TEXTS[kind][text]
                wanted = "headers" if field == "headers" else "query"
                wishes.append(
                    lambda request, wanted=wanted, name=name, texts=texts: request[wanted].append((name, dice.choice(texts)))
                )
        table.wishes.append(wishes)
        return match

    def modifier(self, kind, names, removed):
        operations = {}
        for word in ("set", "add"):
            if self.some(0.5):
                value = self.dice.choice(["1", "two words", "a,b", "50%"])
                operations[word] = [{"name": self.dice.choice(names), "value": value}]
        if not operations or self.some(0.3):
            operations["remove"] = self.dice.sample(removed, 1)
        return {"type": f"{kind}HeaderModifier", f"{kind.lower()}HeaderModifier": operations}

    def backends(self):
        first, second = self.ports
        all_of_them = [{"name": name, "port": first} for name in SERVICES]
        for name, port in [*((name, first) for name in PLAIN), (TWO_PORTS, second)]:
            all_of_them.append({"group": "networking.istio.io", "kind": "Hostname", "name": name, "port": port})
        backends = self.dice.sample(all_of_them, self.dice.choice([1, 1, 2, 3]))
        for backend in backends if len(backends) > 1 else []:
            backend["weight"] = self.dice.choice([0, 1, 10])
        backends[0].pop("weight", None)
        for backend in backends:
            if self.some(0.2):
                backend["filters"] = [self.modifier("Request", REQUEST_NAMES, ["x-a"])]
        return backends

    def http_path(self, has_prefix):
        if has_prefix and self.some(0.6):
            return {"type": "ReplacePrefixMatch", "replacePrefixMatch": self.dice.choice(["/", "/new", "/new/", ""])}
        return {"type": "ReplaceFullPath", "replaceFullPath": self.dice.choice(["/", "/new", "/new/b"])}

    def http_redirect(self, has_prefix):
        redirect = {}
        if self.some(0.5):
            redirect["path"] = self.http_path(has_prefix)
        if self.some(0.4):
            redirect["hostname"] = "new.example"
        if self.some(0.3):
            redirect["scheme"] = self.dice.choice(["http", "https"])
        if self.some(0.3):
            redirect["port"] = self.dice.choice([80, 443, 8080])
        if self.some(0.4) or not redirect:
            redirect["statusCode"] = self.dice.choice([301, 302, 303, 307, 308])
        return redirect

    def url_rewrite(self, has_prefix):
        rewrite = {}
        if self.some(0.7):
            rewrite["path"] = self.http_path(has_prefix)
        if self.some(0.4) or not rewrite:
            rewrite["hostname"] = "new.example"
        return rewrite

    # Requests

    def request(self, table):
        """One that a rule is for, or nearly; or any."""
        dice = self.dice
        request = {"method": "GET", "path": "/", "query": [], "headers": [], "port": dice.choice(self.ports)}
        request["source"] = dice.choice(sorted(SOURCES))
        wishes = dice.choice(table.wishes) if table.wishes and self.some(0.85) else []
        for wish in wishes:
            if self.some(0.93):
                wish(request)
        pairs = request.pop("query")
        query = "&".join(f"{escaped(name)}={escaped(value)}" for name, value in pairs)
        if self.some(0.25):
            request["path"] = dice.choice(ASKED_PATHS)
        if self.some(0.15):
            request["method"] = dice.choice(METHODS)
        if query and self.some(0.7):
            request["path"] += f"?{query}"
        else:
            request["path"] += dice.choice(["", "", *QUERIES])
        for name in HEADERS:
            if self.some(0.1):
                request["headers"].append((name, dice.choice(VALUES)))
        if self.some(0.15):
            request["headers"].append(("origin", dice.choice(ORIGINS)))
            if request["method"] == "OPTIONS" or self.some(0.3):
                request["method"] = "OPTIONS"
                request["headers"].append(("access-control-request-method", dice.choice(["GET", "POST", "DELETE"])))
        host = dice.choice(table.names)
        host = dice.choice([host, host, host, f"{host}:{request['port']}", host.upper(), f"{host.title()}:{request['port']}"])
        return {**request, "host": host}


# What stands in queries as it is.
SAFE = string.ascii_letters + string.digits + "-_.~,=;"


def escaped(text):
    return "".join(one if one in SAFE else "".join(f"%{byte:02X}" for byte in one.encode()) for one in text)


def meta(name, namespace="default"):
    return {"name": name, "namespace": namespace}


def istio(kind, name, spec):
    return {"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": meta(name), "spec": spec}


def endpoint(labels=None, **at):
    return {"address": "127.0.0.1", "ports": at, **({"labels": labels} if labels else {})}


def destinations(ports, listens):
    """The objects of all destinations. `listens` gives the port of the server behind a cluster, by the name of the cluster."""
    first, second = ports
    http = {"number": first, "name": "http", "protocol": "HTTP"}

    def entry(name, host, of_ports, endpoints):
        return istio("ServiceEntry", name, {"hosts": [host], "resolution": "STATIC", "ports": of_ports, "endpoints": endpoints})

    for host in PLAIN:
        yield entry(host.split(".")[0], host, [http], [endpoint(http=listens(f"outbound|{first}||{host}"))])
    at = {"http": listens(f"outbound|{first}||{TWO_PORTS}"), "other": listens(f"outbound|{second}||{TWO_PORTS}")}
    yield entry("two", TWO_PORTS, [http, {"number": second, "name": "other", "protocol": "HTTP"}], [endpoint(**at)])
    subsets = ("v1", "v2")
    of_subsets = [endpoint({"version": subset}, http=listens(f"outbound|{first}|{subset}|{SUBSETS}")) for subset in subsets]
    yield entry("sub", SUBSETS, [http], of_subsets)
    rule = {"host": SUBSETS, "subsets": [{"name": subset, "labels": {"version": subset}} for subset in subsets]}
    yield istio("DestinationRule", "sub", rule)
    for name in SERVICES:
        spec = {"selector": {"app": name}, "ports": [{"name": "http", "port": first}]}
        yield {"apiVersion": "v1", "kind": "Service", "metadata": meta(name), "spec": spec}
        cluster = f"outbound|{first}||{name}.default.svc.cluster.local"
        yield istio("WorkloadEntry", name, endpoint({"app": name}, http=listens(cluster)))

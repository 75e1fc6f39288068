"""What Istio's stock dashboards ask Prometheus for, made from the few shapes that their queries have.

Each query is (dashboard, what it shows, the query, whose it is): "data" is answered by workloads or by mesh-control, and "machine" by
what watches containers and processes, which is no part of a mesh.
Variables are as in the dashboards.
"""

SECURED = [("mutual TLS", '="mutual_tls"', '=~"spiffe.*"'), ("not by mutual TLS", '!="mutual_tls"', '!~"spiffe.*"')]
QUANTILES = [("p50", "0.50"), ("p90", "0.90"), ("p95", "0.95"), ("p99", "0.99")]
SOURCE = 'source_workload=~"$srcwl", source_workload_namespace=~"$srcns"'
BY_SOURCE = "source_workload, source_workload_namespace"
BY_DESTINATION = "destination_workload, destination_workload_namespace"
BY_SERVICE = "destination_service"
OK = 'response_code!~"5.*"'


def _rate(metric, labels, by="", range_="5m"):
    return f"sum(irate({metric}{{{labels}}}[{range_}])){f' by ({by})' if by else ''}"


def _volume(labels, by=""):
    return f"round({_rate('istio_requests_total', labels, by)}, 0.001)"


def _success(labels, by=""):
    return f"{_rate('istio_requests_total', f'{labels}, {OK}', by)} / {_rate('istio_requests_total', labels, by)}"


def _quantile(quantile, metric, labels, by=""):
    by = f"{by}, le" if by else "le"
    return f"histogram_quantile({quantile}, {_rate(metric, labels, by, '1m')})"


def _duration(quantile, labels, by=""):
    milliseconds = _quantile(quantile, "istio_request_duration_milliseconds_bucket", labels, by)
    return f"({milliseconds} / 1000) or {_quantile(quantile, 'istio_request_duration_seconds_bucket', labels, by)}"


def _edges(whom, labels, by, is_outbound=False):
    """The 32 queries of a row of panels: one for each side of the connection's security."""
    for name, policy, principal in SECURED:
        of = f"{labels}, " + (f"destination_principal{principal}" if is_outbound else f"connection_security_policy{policy}")
        yield f"{whom}, {name}: requests", _volume(of, f"{by}, response_code")
        yield f"{whom}, {name}: success rate", _success(of, by)
        for quantile, number in QUANTILES:
            yield f"{whom}, {name}: duration, {quantile}", _duration(number, of, by)
        for what in ("request", "response"):
            for quantile, number in QUANTILES:
                query = _quantile(number, f"istio_{what}_bytes_bucket", of, by)
                yield f"{whom}, {name}: {what} size, {quantile}", query
        for what in ("received", "sent"):
            yield f"{whom}, {name}: bytes {what}", f"round({_rate(f'istio_tcp_{what}_bytes_total', of, by, '1m')}, 0.001)"


def _general(whom, labels, tcp):
    yield f"{whom}: requests", _volume(labels)
    yield f"{whom}: success rate", _success(labels)
    for quantile, number in QUANTILES[:2] + QUANTILES[3:]:
        yield f"{whom}: duration, {quantile}", _duration(number, labels)
    for what in tcp:
        yield f"{whom}: bytes {what}", _rate(f"istio_tcp_{what}_bytes_total", labels, range_="1m")


def mesh():
    source = 'reporter=~"source|waypoint"'
    by = BY_DESTINATION
    yield "requests", f"round(sum(rate(istio_requests_total{{{source}}}[5m])), 0.01)"
    total = f"sum(rate(istio_requests_total{{{source}}}[5m]))"
    yield "success rate", f"sum(rate(istio_requests_total{{{source}, {OK}}}[5m])) / {total}"
    for code in "45":
        with_code = f'sum(rate(istio_requests_total{{{source}, response_code=~"{code}.."}}[5m]))'
        yield f"{code}xx", f"round({with_code}, 0.01) or vector(0)"
    of = f'{source}, destination_service=~".+"'
    joined = "destination_workload, destination_workload_namespace, destination_service"
    yield "workloads: requests", f"label_join(sum(rate(istio_requests_total{{{of}}}[5m])) by ({joined}), 'destination', '.', 'destination_workload', 'destination_workload_namespace')"
    for quantile, number in QUANTILES[:2] + QUANTILES[3:]:
        bucket = f"sum(rate(istio_request_duration_milliseconds_bucket{{{source}}}[5m])) by (le, {by})"
        yield f"workloads: duration, {quantile}", f"histogram_quantile({number}, {bucket})"
    total = f"sum(rate(istio_requests_total{{{source}}}[5m])) by ({by})"
    yield "workloads: success rate", f"sum(rate(istio_requests_total{{{source}, {OK}}}[5m])) by ({by}) / {total}"
    for what in ("received", "sent"):
        yield f"bytes {what}", f"sum(rate(istio_tcp_{what}_bytes_total{{{source}}}[5m])) by ({by})"
    yield "versions", "sum(istio_build) by (component, tag)"


def service():
    own = 'destination_service=~"$service"'
    yield from _general("clients", f'reporter=~"$qrep", {own}', ["received"])
    yield from _general("servers", f'reporter="destination", {own}', ["sent"])
    yield from _edges("client workloads", f'{own}, reporter=~"$qrep", {SOURCE}', BY_SOURCE)
    destination = 'destination_workload=~"$dstwl", destination_workload_namespace=~"$dstns"'
    yield from _edges("service workloads", f'{own}, reporter=~"$qrep", {destination}', BY_DESTINATION)


def workload():
    own = 'destination_workload_namespace=~"$namespace", destination_workload=~"$workload"'
    yield from _general("general", f'reporter=~"$qrep", {own}', ["received", "sent"])
    yield from _edges("inbound", f'{own}, reporter=~"$qrep", {SOURCE}', BY_SOURCE)
    own = 'source_workload_namespace=~"$namespace", source_workload=~"$workload"'
    to = f'{own}, reporter="source", destination_service=~"$dstsvc"'
    yield from _edges("outbound", to, BY_SERVICE, is_outbound=True)


def control_plane():
    """What is known of them: the metrics and labels that their 23 queries are about."""
    yield "versions", 'sum(istio_build{component="pilot"}) by (tag)', "data"
    yield "connected clients", "sum(pilot_xds)", "data"
    yield "pushes by type", "sum(irate(pilot_xds_pushes[1m])) by (type)", "data"
    yield "push time", "sum(rate(pilot_xds_push_time_bucket[1m])) by (le)", "data"
    yield "size of pushes", "sum(rate(pilot_xds_config_size_bytes_bucket[1m])) by (le)", "data"
    yield "what pushes are made for", "sum(rate(pilot_push_triggers[1m])) by (type)", "data"
    for what in ("cfg", "reg"):
        yield f"events: {what}", f"sum(rate(pilot_k8s_{what}_events[1m])) by (type, event)", "data"
    yield "rejected by clients", "sum(pilot_total_xds_rejects) by (type)", "data"
    yield "internal errors", "pilot_total_xds_internal_errors", "data"
    for what in ("passed", "failed"):
        yield f"validation {what}", f"sum(rate(galley_validation_{what}[1m]))", "data"
    for what in ("success", "failure"):
        yield f"injection: {what}", f"sum(rate(sidecar_injection_{what}_total[1m]))", "machine"
    for metric in ("go_memstats_alloc_bytes", "go_memstats_heap_inuse_bytes", "go_memstats_stack_inuse_bytes"):
        yield f"its process: {metric}", f'sum({metric}{{app="istiod"}})', "machine"
    for metric in ("container_memory_working_set_bytes", "container_cpu_usage_seconds_total"):
        yield f"its container: {metric}", f'sum({metric}{{container="discovery", pod=~"istiod-.*"}})', "machine"
    yield "its goroutines", 'sum(go_goroutines{app="istiod"})', "machine"
    yield "proxies' streams", 'sum(envoy_cluster_upstream_cx_active{cluster_name="xds-grpc"})', "machine"


def all_queries():
    for dashboard, queries in (("mesh", mesh()), ("service", service()), ("workload", workload())):
        for what, query in queries:
            yield dashboard, what, query, "data"
    for what, query, whose in control_plane():
        yield "control plane", what, query, whose

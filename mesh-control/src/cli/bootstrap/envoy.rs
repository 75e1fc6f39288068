//! The whole configuration of an Envoy beside a workload, or of one that is a gateway: who it is, where it finds `mesh-control`, and nothing else. Listeners,
//! routes, clusters and endpoints come over one stream, certificates over another one.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::bail;
use serde_json::{Value, json};

use super::{Args, Dialect, EnvoyType, Interception};
use crate::cli::ca::{ENVOY_CERTIFICATE, ENVOY_ROOTS};

const TYPES: &str = "type.googleapis.com/envoy.extensions";

pub(super) fn bootstrap(args: &Args, proxy: EnvoyType) -> anyhow::Result<Value> {
    if args.dialect != Dialect::MeshControl || args.token.is_some() || args.workload_api.is_some() {
        bail!("an Envoy shows its certificate by files (--certificates DIR), and is told by mesh-control only");
    }
    let ip = args.ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let redirects = args.interception == Interception::Redirect;
    if args.outbound_ip.is_some_and(|ip| redirects || !ip.is_loopback()) {
        bail!(
            "--outbound-ip is a loopback address, for an Envoy that intercepts nothing: whoever reached another one would call in the name of the workload"
        );
    }
    let is_gateway = proxy == EnvoyType::Gateway;
    if is_gateway && (redirects || args.outbound_ip.is_some()) {
        bail!("a gateway stands beside no workload: --interception and --outbound-ip are for `--envoy sidecar`");
    }
    if is_gateway && args.group.is_some() {
        bail!("a gateway is no member of a WorkloadGroup: --group is for `--envoy sidecar`");
    }
    let port = if args.certificates.is_some() || args.tls_ca.is_some() { 15012 } else { 15010 };
    let server = args.server.clone().unwrap_or_else(|| format!("127.0.0.1:{port}"));
    let Some((host, port)) = server.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)))
    else {
        bail!("--server {server} is no HOST:PORT");
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut node = super::bootstrap(&Args { envoy: None, ..args.clone() })?["node"].take();
    let (name, namespace) = (args.name(), &args.namespace);
    let kind = if is_gateway { "router" } else { "sidecar" };
    node["id"] = json!(format!("{kind}~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"));
    let metadata = &mut node["metadata"];
    if !is_gateway {
        metadata["INTERCEPTION_MODE"] = json!(if redirects { "REDIRECT" } else { "NONE" });
    }
    metadata["CLUSTER_ID"] = json!("Kubernetes");
    if let Some(ip) = args.outbound_ip {
        metadata["MESH_OUTBOUND_IP"] = json!(ip.to_string());
    }
    if args.unprivileged {
        metadata["UNPRIVILEGED_POD"] = json!("true");
    }
    let cluster = |name: &str| control(name, host, port, args);
    let mut clusters = vec![cluster("xds-grpc")];
    if args.certificates.is_some() {
        clusters.push(cluster("sds-grpc"));
    }
    let by_ads = json!({ "ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s" });
    // It tells over the connection of its configuration.
    let told = json!({
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
    });
    let mut bootstrap = json!({
        "node": node,
        "admin": { "address": address("127.0.0.1", args.admin_port) },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{ "envoy_grpc": {
                    "cluster_name": "xds-grpc",
                    // It is back soon after mesh-control is.
                    "retry_policy": { "retry_back_off": { "base_interval": "0.25s", "max_interval": "3s" } },
                } }],
            },
            "lds_config": by_ads,
            "cds_config": by_ads,
        },
        // How many requests it sends where.
        "cluster_manager": { "load_stats_config": told },
        "static_resources": { "clusters": clusters },
    });
    if args.group.is_some() {
        // How its workload is, by the probe of the group.
        bootstrap["hds_config"] = told;
    }
    Ok(bootstrap)
}

fn address(host: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": host, "port_value": port } })
}

/// `mesh-control`, over HTTP/2 and, where files say who both are, over TLS 1.3.
fn control(name: &str, host: &str, port: u16, args: &Args) -> Value {
    let options = json!({
        "@type": format!("{TYPES}.upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": { "http2_protocol_options": {
            "connection_keepalive": { "interval": "30s", "timeout": "10s" },
        } },
    });
    let endpoint = json!({ "endpoint": { "address": address(host, port) } });
    let mut cluster = json!({
        "name": name,
        "type": if host.parse::<IpAddr>().is_ok() { "STATIC" } else { "STRICT_DNS" },
        "connect_timeout": "1s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] },
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options },
    });
    let dir = args.certificates.as_ref();
    let by_file = |name: &str| {
        let path = dir.map(|dir| dir.join(name)).unwrap_or_default();
        json!({ "path_config_source": { "path": path }, "resource_api_version": "V3" })
    };
    let mut common = json!({
        "alpn_protocols": ["h2"],
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
    });
    match (&args.tls_ca, dir) {
        (None, None) => return cluster,
        // Its certificate is one of the operator's: it proves its host.
        (Some(authority), _) => {
            common["validation_context"] = json!({
                "trusted_ca": { "filename": authority },
                "match_typed_subject_alt_names": [name_of(host)],
            });
        }
        // Its certificate is one of the mesh, which says that it is the control plane.
        (None, Some(_)) => {
            let server = json!({ "safe_regex": { "regex": "spiffe://[^/]+/mesh-control" } });
            common["combined_validation_context"] = json!({
                "default_validation_context": {
                    "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": server }],
                },
                "validation_context_sds_secret_config": { "name": "roots", "sds_config": by_file(ENVOY_ROOTS) },
            });
        }
    }
    if dir.is_some() {
        // A new one takes its place when `mesh-control ca issue` has written it.
        common["tls_certificate_sds_secret_configs"] =
            json!([{ "name": "own", "sds_config": by_file(ENVOY_CERTIFICATE) }]);
    } else if let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) {
        common["tls_certificates"] =
            json!([{ "certificate_chain": { "filename": certificate }, "private_key": { "filename": key } }]);
    }
    let context = json!({
        "@type": format!("{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"),
        "sni": if host.parse::<IpAddr>().is_ok() { "" } else { host },
        "common_tls_context": common,
    });
    cluster["transport_socket"] = json!({ "name": "envoy.transport_sockets.tls", "typed_config": context });
    cluster
}

/// The name that a server of the operator's has to prove.
fn name_of(host: &str) -> Value {
    let kind = if host.parse::<IpAddr>().is_ok() { "IP_ADDRESS" } else { "DNS" };
    json!({ "san_type": kind, "matcher": { "exact": host } })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn of(line: &[&str]) -> anyhow::Result<Value> {
        of_type("sidecar", line)
    }

    fn of_type(proxy: &str, line: &[&str]) -> anyhow::Result<Value> {
        let args = Line::try_parse_from([&["bootstrap", "--envoy", proxy], line].concat())?.args;
        bootstrap(&args, args.envoy.expect("it is written"))
    }

    #[test]
    fn an_envoy_is_told_who_it_is_where_mesh_control_is_and_nothing_else() {
        let line = ["--name", "web-1", "--namespace", "shop", "--ip", "10.0.0.1", "--label", "app=web"];
        let plain = of(&line).expect("a good line");
        assert_eq!(plain["node"]["id"], "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local");
        let metadata = &plain["node"]["metadata"];
        assert_eq!((&metadata["INTERCEPTION_MODE"], &metadata["LABELS"]["app"]), (&json!("NONE"), &json!("web")));
        let reports = &plain["cluster_manager"]["load_stats_config"]["grpc_services"][0]["envoy_grpc"];
        assert_eq!(reports["cluster_name"], "xds-grpc");
        assert_eq!(plain["admin"]["address"]["socket_address"]["address"], "127.0.0.1");
        let clusters = plain["static_resources"]["clusters"].as_array().expect("a list");
        assert_eq!(clusters.len(), 1, "there is nobody to tell it of certificates");
        assert_eq!((&clusters[0]["name"], clusters[0].get("transport_socket")), (&json!("xds-grpc"), None));

        let more = ["--certificates", "/run/web", "--interception", "redirect", "--server", "control.example:15012"];
        let secured = of(&[&line[..], &more].concat()).expect("a good line");
        let clusters = secured["static_resources"]["clusters"].as_array().expect("a list");
        let names: Vec<_> = clusters.iter().map(|cluster| &cluster["name"]).collect();
        assert_eq!(names, ["xds-grpc", "sds-grpc"]);
        for cluster in clusters {
            assert_eq!(cluster["type"], "STRICT_DNS");
            let common = &cluster["transport_socket"]["typed_config"]["common_tls_context"];
            let own = &common["tls_certificate_sds_secret_configs"][0]["sds_config"];
            assert_eq!(own["path_config_source"]["path"], "/run/web/envoy-certificate.json");
            let names = &common["combined_validation_context"]["default_validation_context"];
            assert!(
                names["match_typed_subject_alt_names"][0].is_object(),
                "any workload could say that it is the server"
            );
        }
        assert_eq!(secured["node"]["metadata"]["INTERCEPTION_MODE"], "REDIRECT");
    }

    #[test]
    fn a_member_of_a_group_says_which_and_tells_how_its_workload_is() {
        let member = of(&["--group", "vms"]).expect("a good line");
        assert_eq!(member["node"]["metadata"]["AUTO_REGISTER_GROUP"], "vms");
        assert_eq!(member["hds_config"]["grpc_services"][0]["envoy_grpc"]["cluster_name"], "xds-grpc");
        assert_eq!(of(&[]).expect("a good line").get("hds_config"), None);
    }

    #[test]
    fn the_command_of_the_documentation_is_a_good_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/envoy.md");
        let text = std::fs::read_to_string(path).expect("the documentation");
        let line = text.lines().find_map(|line| line.trim().strip_prefix("mesh-control bootstrap --envoy sidecar "));
        let words: Vec<&str> = line.expect("the command").split(' ').collect();
        let bootstrap = of(&words).expect("a good line");
        assert_eq!(bootstrap["node"]["id"], "sidecar~10.0.0.7~reviews-1.default~default.svc.cluster.local");
    }

    #[test]
    fn a_gateway_says_that_it_is_one_and_stands_beside_nobody() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/gateways.md");
        let text = std::fs::read_to_string(path).expect("the documentation");
        let line = text.lines().find_map(|line| line.trim().strip_prefix("mesh-control bootstrap --envoy gateway "));
        let words: Vec<&str> = line.expect("the command").split(' ').collect();
        let bootstrap = of_type("gateway", &words).expect("a good line");
        assert_eq!(bootstrap["node"]["id"], "router~127.0.0.1~edge-1.istio-system~istio-system.svc.cluster.local");
        let metadata = &bootstrap["node"]["metadata"];
        assert_eq!(metadata["LABELS"]["istio"], "ingressgateway");
        assert!(metadata.get("INTERCEPTION_MODE").is_none());
        assert!(of_type("gateway", &["--interception", "redirect"]).is_err());
        assert!(of_type("gateway", &["--outbound-ip", "127.0.0.2"]).is_err());
        assert!(of_type("gateway", &["--group", "vms"]).is_err());
    }

    #[test]
    fn what_would_open_an_envoy_to_others_or_not_work_is_refused() {
        for line in [
            &["--outbound-ip", "10.0.0.1"][..],
            &["--outbound-ip", "0.0.0.0"],
            &["--outbound-ip", "127.0.0.2", "--interception", "redirect"],
            &["--server", "nowhere"],
            &["--for", "istiod"],
            &["--workload-api", "unix:///a"],
        ] {
            assert!(of(line).is_err(), "{line:?}");
        }
        assert!(Line::try_parse_from(["bootstrap", "--interception", "redirect"]).is_err(), "it is for an Envoy");
    }
}

//! The whole walk of this crate's own half: YAML in, xDS out, as the library and as a gRPC client see it.

use crate::support::{Seen, address_of, client, grpc_client, plane_from, plane_of, workload};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use mesh_control::catalog::{Catalog, Kind};
use mesh_control::plane::{OutboundTrafficPolicy, Plane, PlaneOptions};
use mesh_control::registry::{Health, Workload};

#[test]
fn a_request_is_routed_split_delayed_and_bounded_as_the_yaml_says() {
    let plane = plane_of("shop");
    let seen = Seen::new(&plane, client("default"));
    let routes = seen.routes_of("catalog:8080");
    assert_eq!(routes.name, "outbound|8080||catalog.default.svc.cluster.local");
    assert_eq!(
        routes.virtual_hosts[0].domains,
        [
            "catalog.default.svc.cluster.local",
            "catalog.default.svc.cluster.local:8080",
            "catalog",
            "catalog:8080",
            "catalog.default",
            "catalog.default:8080",
            "catalog.default.svc",
            "catalog.default.svc:8080",
            "*",
        ]
    );
    let [ann, split] = &routes.virtual_hosts[0].routes[..] else { panic!("two routes") };
    assert_eq!((ann.name.as_str(), split.name.as_str()), ("for-ann", "split"));
    assert_eq!(ann.r#match.as_ref().unwrap().headers[0].name, "end-user");
    let Some(Action::Route(action)) = &split.action else { panic!("a route") };
    let Some(ClusterSpecifier::WeightedClusters(clusters)) = &action.cluster_specifier else { panic!("weights") };
    let weights: Vec<(&str, u32)> = clusters
        .clusters
        .iter()
        .map(|cluster| (cluster.name.as_str(), cluster.weight.as_ref().unwrap().value))
        .collect();
    assert_eq!(
        weights,
        [
            ("outbound|8080|v1|catalog.default.svc.cluster.local", 80),
            ("outbound|8080|v2|catalog.default.svc.cluster.local", 20),
        ]
    );
    assert_eq!(action.timeout.as_ref().unwrap().seconds, 3);
    assert!(split.typed_per_filter_config.contains_key("envoy.filters.http.fault"));
    // The listener has the fault filter because a route of it has a fault.
    assert_eq!(seen.filters_of("catalog:8080"), ["envoy.filters.http.fault", "envoy.filters.http.router"]);
    assert_eq!(seen.filters_of("storefront:8080"), ["envoy.filters.http.router"]);
}

#[test]
fn a_subset_has_its_own_endpoints_and_settings() {
    let plane = plane_of("shop");
    plane.register(workload("a", "catalog", "v1", "10.0.0.1:8080"));
    plane.register(workload("b", "catalog", "v2", "10.0.0.2:8080"));
    let seen = Seen::new(&plane, client("default"));
    let all = "outbound|8080||catalog.default.svc.cluster.local";
    let v2 = "outbound|8080|v2|catalog.default.svc.cluster.local";
    assert_eq!(seen.addresses(all), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(seen.addresses(v2), ["10.0.0.2:8080"]);
    let cluster = seen.cluster(all);
    assert_eq!(cluster.connect_timeout.unwrap().nanos, 250_000_000);
    assert_eq!(cluster.lb_policy().as_str_name(), "RANDOM");
    assert_eq!(seen.cluster(v2).lb_policy().as_str_name(), "ROUND_ROBIN");
    let default = seen.cluster("outbound|8080||storefront.default.svc.cluster.local");
    assert_eq!(default.lb_policy().as_str_name(), "LEAST_REQUEST");
    assert_eq!(default.connect_timeout.unwrap().seconds, 10);
}

#[test]
fn names_that_mean_nothing_are_nothing() {
    let plane = plane_of("shop");
    let snapshot = plane.snapshot();
    for class in [client("default"), grpc_client("default")] {
        for (kind, name) in [
            (Kind::Listener, "catalog:9"),
            (Kind::Listener, "catalog:8080:8080"),
            (Kind::Listener, ""),
            (Kind::Listener, "xds.istio.io/grpc/lds/inbound/"),
            (Kind::Listener, "xds.istio.io/grpc/lds/inbound/host:80"),
            (Kind::Listener, "xds.istio.io/grpc/lds/inbound/1.2.3.4:0"),
            (Kind::Route, "outbound|8080|v1|catalog.default.svc.cluster.local"),
            (Kind::Route, "outbound|9||catalog.default.svc.cluster.local"),
            (Kind::Cluster, "outbound|8080|v9|catalog.default.svc.cluster.local"),
            (Kind::Cluster, "catalog:8080"),
            (Kind::Endpoints, "outbound|8080|v9|catalog.default.svc.cluster.local"),
            (Kind::Endpoints, "\u{0}"),
        ] {
            assert!(snapshot.resource(&class, kind, name).is_none(), "{kind:?} {name:?}");
        }
    }
    // A gRPC client has no other way to a name than ours; the library looks it up itself.
    assert!(snapshot.resource(&grpc_client("default"), Kind::Listener, "nowhere:80").is_none());
    assert!(snapshot.resource(&client("default"), Kind::Listener, "nowhere:80").is_some());
    let closed = PlaneOptions::default().outbound_traffic_policy(OutboundTrafficPolicy::RegistryOnly);
    let closed = Plane::start(closed).unwrap().snapshot();
    let refused = closed.resource(&client("default"), Kind::Listener, "nowhere:80").unwrap();
    assert!(String::from_utf8_lossy(&refused.body).contains("such hosts are not called (REGISTRY_ONLY)"));
}

#[test]
fn a_workload_that_comes_and_goes_changes_its_endpoints_and_nothing_else() {
    let plane = plane_of("shop");
    let name = "outbound|8080||catalog.default.svc.cluster.local";
    let other = "outbound|8080||storefront.default.svc.cluster.local";
    let client = client("default");
    let before = plane.snapshot();
    let empty = before.resource(&client, Kind::Endpoints, name).unwrap();
    assert!(empty.endpoints == 0 && empty.self_registered);
    let cluster = before.resource(&client, Kind::Cluster, name).unwrap();

    plane.register(workload("a", "catalog", "v1", "10.0.0.1:8080"));
    let after = plane.snapshot();
    assert_eq!(after.config_generation(), before.config_generation());
    assert!(after.generation() > before.generation());
    let one = after.resource(&client, Kind::Endpoints, name).unwrap();
    assert!(one.endpoints == 1 && one.version != empty.version);
    assert_eq!(after.resource(&client, Kind::Cluster, name).unwrap(), cluster);
    let same = after.resource(&client, Kind::Endpoints, other).unwrap();
    assert_eq!(same, before.resource(&client, Kind::Endpoints, other).unwrap());
    // The old snapshot is what it was.
    assert!(before.resource(&client, Kind::Endpoints, name).unwrap().endpoints == 0);

    let mut draining = workload("a", "catalog", "v1", "10.0.0.1:8080");
    draining.health = Health::Draining;
    plane.register(draining);
    let snapshot = plane.snapshot();
    assert_ne!(snapshot.resource(&client, Kind::Endpoints, name).unwrap().version, one.version);
    plane.unregister("a");
    assert_eq!(plane.snapshot().resource(&client, Kind::Endpoints, name).unwrap(), empty);
}

#[test]
fn a_workload_that_serves_nothing_is_visible() {
    let plane = plane_of("shop");
    plane.register(workload("x", "ledger", "v1", "10.0.0.1:40000"));
    plane.register(workload("y", "ledger", "v1", "10.0.0.2:8080"));
    let workloads = plane.workloads();
    assert!(workloads[0].note.as_deref().unwrap().contains("40000"));
    assert_eq!(workloads[1].serves, ["ledger.default.svc.cluster.local:80"]);
    let services = plane.services();
    let ledger = services.iter().find(|service| service.host.starts_with("ledger")).unwrap();
    assert_eq!(ledger.ports[0].endpoints.len(), 1);
    assert_eq!((ledger.discovery, ledger.written.as_str()), ("registry", "services.yaml:30"));
}

#[test]
fn a_member_is_known_to_clients_and_people_by_the_labels_of_its_group() {
    let plane = plane_from(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{name: http, port: 80}]}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {name: vms}\n\
         spec: {metadata: {labels: {app: web, version: v1}}}\n",
    );
    let mut member = Workload::new("m", "default", "web-vm-1", "10.0.0.7:80".parse().unwrap());
    member.group = Some("vms".into());
    plane.register(member);
    let known = plane.workloads().remove(0);
    assert_eq!((known.labels["version"].as_str(), known.group.as_deref(), known.health), ("v1", Some("vms"), None));
    assert_eq!(known.selected_by, ["web.default.svc.cluster.local"]);
    let told = Seen::new(&plane, client("default")).assignment("outbound|80||web.default.svc.cluster.local");
    let metadata = told.endpoints[0].lb_endpoints[0].metadata.clone().unwrap();
    let told = format!("{:?}", metadata.filter_metadata["istio"]);
    assert!(told.contains("web-vm-1;default;web;v1;"), "{told}");
}

#[test]
fn a_wrong_text_is_refused_and_what_was_in_force_stays() {
    let plane = plane_of("shop");
    let client = client("default");
    let before = plane.snapshot();
    let name = "outbound|8080||catalog.default.svc.cluster.local";
    let routes = before.resource(&client, Kind::Route, name).unwrap();
    let wrong = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: catalog}\nspec: {hosts: [catalog], htp: []}\n";
    let rejected = plane.set_yaml("routes.yaml", wrong).unwrap_err();
    assert!(rejected.to_string().contains("routes.yaml:4:26: error[unknown-field]"), "{rejected}");
    assert_eq!(plane.snapshot().resource(&client, Kind::Route, name).unwrap(), routes);
    assert!(plane.diagnostics().iter().any(|finding| finding.message.contains("stay in force")));

    let all_v1 = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: catalog}\nspec:\n  hosts: [catalog]\n  http:\n  - route: [{destination: {host: catalog, subset: v1}}]\n";
    let generation = plane.set_yaml("routes.yaml", all_v1).unwrap();
    assert_eq!(plane.snapshot().config_generation(), generation);
    assert_ne!(plane.snapshot().resource(&client, Kind::Route, name).unwrap(), routes);
    // Setting the same text again changes nothing.
    assert_eq!(plane.set_yaml("routes.yaml", all_v1).unwrap(), generation);
}

#[test]
fn a_server_gets_a_listener_for_exactly_the_address_that_it_bound() {
    let plane = plane_of("shop");
    for bound in ["0.0.0.0:50051", "[::]:50051", "127.0.0.1:1"] {
        for client in [client("default"), grpc_client("default")] {
            let listener = Seen::new(&plane, client).server_listener(bound);
            assert_eq!(address_of(listener.address.as_ref().unwrap()), bound);
            assert_eq!(listener.filter_chains.len(), 1);
        }
    }
}

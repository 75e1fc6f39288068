//! Whether the data plane would take a resource: for the tests of whoever writes resources, or programs that make them.

use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::decode::{Decoded, Options, decode_named, unwrap};
use super::names::kind_of;
use crate::error::Invalid;
use crate::model::{HttpManager, Listener, RouteConfiguration, RouteSource};
use crate::resources::Resource;
use crate::state::States;
use crate::view::RouteTable;

/// Whether the data plane would take a resource of any kind, and what it would make of it. A resource is what an `Any` has: the
/// URL of its type, and its bytes; it may be in its wrapper (`envoy.service.discovery.v3.Resource`).
///
/// It is decoded as it is when it comes over xDS, and what is compiled from it alone is compiled: the routes of a listener that
/// carries them, with its filters, and a route configuration without any. What a resource refers to is not looked for. Fields
/// that are set and have no effect are in [`Decoded::ignored`]; a test that wants none of them says so.
///
/// # Errors
/// [`Invalid`] with the name of the resource, the path of the field and the reason: what a NACK would say.
///
/// ```
/// use envoy_types::pb::envoy::config::route::v3 as pb;
/// use mesh_core::xds::decode::Options;
/// use mesh_core::xds::validate;
/// use prost::Message;
///
/// const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
///
/// let mut routes = pb::RouteConfiguration { name: "reviews".into(), ..Default::default() };
/// routes.virtual_hosts.push(pb::VirtualHost { domains: vec!["reviews".into()], ..Default::default() });
/// let taken = validate(ROUTES, &routes.encode_to_vec(), &Options::default()).unwrap();
/// assert!(taken.ignored.is_empty(), "{:?}", taken.ignored);
///
/// routes.virtual_hosts[0].domains.push("*.*".into());
/// let refused = validate(ROUTES, &routes.encode_to_vec(), &Options::default()).unwrap_err();
/// assert_eq!(refused.to_string(), r#""reviews": virtual_hosts[0].domains[1]: "*.*": only one * at the start or the end"#);
/// ```
pub fn validate(type_url: &str, bytes: &[u8], options: &Options) -> Result<Decoded, Invalid> {
    let any = Any { type_url: type_url.to_owned(), value: bytes.to_vec() };
    let inner = discovery::Resource::decode(bytes).ok().and_then(|wrapper| wrapper.resource);
    let kind = kind_of(type_url).or_else(|| inner.and_then(|inner| kind_of(&inner.type_url)));
    let kind = kind.ok_or_else(|| Invalid::new(format!("type {type_url:?} is none of those that are used")))?;
    let unwrapped = unwrap(kind, any)?;
    let decoded = decode_named(kind, &unwrapped.name, &unwrapped.bytes, None, options)?;
    match &decoded.resource {
        Resource::Listener(listener) => match &**listener {
            Listener::Api(listener) => compile(&listener.http, &decoded.name, options)?,
            Listener::Server(server) => {
                server.chains().try_for_each(|chain| compile(&chain.http, &decoded.name, options))?;
            }
        },
        Resource::Route(routes) => {
            compile(&HttpManager::new(RouteSource::Inline(std::sync::Arc::clone(routes))), &decoded.name, options)?;
        }
        Resource::Cluster(_) | Resource::Endpoints(_) | Resource::Secret(_) => {}
    }
    Ok(decoded)
}

/// Whether routes can be compiled under these filters; where they are another resource, whether the filters can.
fn compile(http: &HttpManager, name: &str, options: &Options) -> Result<(), Invalid> {
    let routes = match &http.routes {
        RouteSource::Inline(routes) => std::sync::Arc::clone(routes),
        RouteSource::Named(_) => std::sync::Arc::new(RouteConfiguration::default()),
    };
    let compiled = RouteTable::compile(routes, http, &options.custom_filters, &States::default(), name);
    compiled.map(|_| ()).map_err(|invalid| invalid.of(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::resources::{
        eds_cluster, endpoints, inline_listener, pack, route_to_application, routes, routes_to, virtual_host,
    };

    fn validated(any: &Any) -> Result<Decoded, Invalid> {
        validate(&any.type_url, &any.value, &Options::default())
    }

    #[test]
    fn resources_of_every_kind_are_taken_alone_and_in_their_wrapper() {
        let all = [
            pack(&inline_listener("l", routes_to("r", "c"))),
            pack(&routes_to("r", "c")),
            pack(&eds_cluster("c")),
            pack(&endpoints("c", &[("127.0.0.1", 80)])),
        ];
        for any in all {
            let name = validated(&any).unwrap_or_else(|invalid| panic!("{}: {invalid}", any.type_url)).name;
            let wrap = |name: &str| discovery::Resource {
                name: name.to_owned(),
                resource: Some(any.clone()),
                ..Default::default()
            };
            assert_eq!(validated(&pack(&wrap(&name))).unwrap().name, name);
            assert!(validated(&pack(&wrap("another"))).unwrap_err().to_string().contains("the name on the wrapper"));
        }
    }

    #[test]
    fn what_is_no_resource_is_refused_with_its_type() {
        let other = Any { type_url: "type.googleapis.com/google.protobuf.Empty".to_owned(), value: Vec::new() };
        assert!(validated(&other).unwrap_err().to_string().contains("google.protobuf.Empty"));
        let broken = Any { value: vec![0xff; 7], ..pack(&eds_cluster("c")) };
        assert!(validated(&broken).is_err());
    }

    #[test]
    fn what_is_only_found_when_it_is_compiled_is_found() {
        use crate::testing::resources::{filter_chain, http_filter, http_manager, server_listener};
        use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
        use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
        use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
        let listener = |in_place_of_the_guard: Option<Any>| {
            let mut route = route_to_application();
            route.typed_per_filter_config.extend(in_place_of_the_guard.map(|config| ("guard".to_owned(), config)));
            let routes = routes("r", vec![virtual_host("all", &["*"], vec![route])]);
            let mut manager = http_manager(hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes.clone()));
            manager.http_filters.insert(0, http_filter("guard", pack(&Rbac::default())));
            let mut listener = server_listener("l", "127.0.0.1:80".parse().expect("an address"), routes);
            listener.filter_chains = vec![filter_chain(&manager)];
            pack(&listener)
        };
        assert!(validated(&listener(None)).is_ok());
        let refused = validated(&listener(Some(pack(&HttpFault::default())))).unwrap_err().to_string();
        assert!(refused.contains("only RBAC can stand in its place"), "{refused}");
    }
}

//! The JSON of a bootstrap, key by key. Every error has the path of its key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    Authority, Bootstrap, CertificateProvider, ChannelCredentials, ClientTlsFiles, Node, Server, default_template,
};
use crate::error::Invalid;
use crate::id::Locality;

/// The text of a syntax error, without the place that `serde_json` appends.
pub(super) fn syntax(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(reason, _)| reason.to_owned())
}

pub(super) fn bootstrap(value: Value) -> Result<Bootstrap, Invalid> {
    let mut ignored = Vec::new();
    let mut keys = Keys::of(value)?;
    let servers = keys.required("xds_servers").and_then(|value| servers(value, "xds_servers", &mut ignored))?;
    if servers.is_empty() {
        return Err(Invalid::new("at least one server is needed").at("xds_servers"));
    }
    let node = keys.with("node", |value| node(value, &mut ignored))?.unwrap_or_default();
    let certificate_providers = keys.with("certificate_providers", certificate_providers)?.unwrap_or_default();
    let server_listener_template = keys.with("server_listener_resource_name_template", text)?;
    let client_listener_template = keys
        .with("client_default_listener_resource_name_template", text)?
        .filter(|template| !template.is_empty())
        .unwrap_or_else(|| "%s".to_owned());
    let authorities = keys.with("authorities", |value| authorities(value, &mut ignored))?.unwrap_or_default();
    keys.ignore_rest("", &mut ignored);
    Ok(Bootstrap {
        servers,
        node,
        certificate_providers,
        server_listener_template,
        client_listener_template,
        authorities,
        ignored,
    })
}

/// The keys of an object that were not taken yet.
struct Keys(Map<String, Value>);

impl Keys {
    fn of(value: Value) -> Result<Self, Invalid> {
        match value {
            Value::Object(keys) => Ok(Keys(keys)),
            other => Err(Invalid::new(format!("expected an object, found {}", kind(&other)))),
        }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key).filter(|value| !value.is_null())
    }

    fn required(&mut self, key: &str) -> Result<Value, Invalid> {
        self.take(key).ok_or_else(|| Invalid::new("missing").at(key))
    }

    fn with<T>(&mut self, key: &str, parse: impl FnOnce(Value) -> Result<T, Invalid>) -> Result<Option<T>, Invalid> {
        self.take(key).map(parse).transpose().map_err(|invalid| invalid.at(key))
    }

    fn ignore_rest(self, within: &str, ignored: &mut Vec<String>) {
        ignored.extend(self.0.into_iter().map(|(key, _)| format!("{within}{key}")));
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn text(value: Value) -> Result<String, Invalid> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(Invalid::new(format!("expected a string, found {}", kind(&other)))),
    }
}

fn list<T>(value: Value, mut parse: impl FnMut(usize, Value) -> Result<T, Invalid>) -> Result<Vec<T>, Invalid> {
    let Value::Array(items) = value else {
        return Err(Invalid::new(format!("expected a list, found {}", kind(&value))));
    };
    let items = items.into_iter().enumerate();
    items.map(|(index, item)| parse(index, item).map_err(|invalid| invalid.at(format!("[{index}]")))).collect()
}

fn servers(value: Value, within: &str, ignored: &mut Vec<String>) -> Result<Vec<Server>, Invalid> {
    list(value, |index, value| server(value, &format!("{within}[{index}]."), ignored))
        .map_err(|invalid| invalid.at(within.rsplit_once('.').map_or(within, |(_, key)| key)))
}

fn server(value: Value, within: &str, ignored: &mut Vec<String>) -> Result<Server, Invalid> {
    let mut keys = Keys::of(value)?;
    let uri = keys.required("server_uri").and_then(|value| text(value).map_err(|invalid| invalid.at("server_uri")))?;
    crate::xds::place::Place::parse(&uri).map_err(|invalid| invalid.at("server_uri"))?;
    let credentials = keys.required("channel_creds")?;
    let place = format!("{within}channel_creds");
    let credentials = credentials_of(credentials, &place, ignored).map_err(|invalid| invalid.at("channel_creds"))?;
    let features = keys.with("server_features", |value| list(value, |_, value| text(value)))?;
    keys.ignore_rest(within, ignored);
    Ok(Server { uri, features: features.unwrap_or_default().into_iter().collect::<BTreeSet<_>>(), credentials })
}

/// The first kind that is supported counts; the others are for other clients (gRFC A27).
fn credentials_of(value: Value, within: &str, ignored: &mut Vec<String>) -> Result<ChannelCredentials, Invalid> {
    let mut kinds = Vec::new();
    let credentials = list(value, |index, value| {
        let mut keys = Keys::of(value)?;
        let kind = keys.required("type").and_then(|value| text(value).map_err(|invalid| invalid.at("type")))?;
        let credentials = match kind.as_str() {
            "insecure" => Some(ChannelCredentials::Insecure),
            "tls" => {
                let config = keys.take("config").unwrap_or_else(|| Value::Object(Map::new()));
                let files = tls(config, &format!("{within}[{index}].config."), ignored);
                Some(ChannelCredentials::Tls(files.map_err(|invalid| invalid.at("config"))?))
            }
            _ => None,
        };
        kinds.push(kind);
        Ok(credentials)
    })?;
    credentials.into_iter().flatten().next().ok_or_else(|| {
        Invalid::new(format!("no supported kind among {kinds:?}; supported are \"tls\" and \"insecure\""))
    })
}

/// gRFC A65's fields. `refresh_interval` asks for no more than is done: the files are read for every connection.
fn tls(value: Value, within: &str, ignored: &mut Vec<String>) -> Result<ClientTlsFiles, Invalid> {
    let mut keys = Keys::of(value)?;
    if keys.take("spiffe_trust_bundle_map_file").is_some() {
        // It would take the place of `ca_certificate_file`.
        return Err(Invalid::new("not supported").at("spiffe_trust_bundle_map_file"));
    }
    let ca_certificate = keys.with("ca_certificate_file", text)?;
    let certificate = keys.with("certificate_file", text)?;
    let key = keys.with("private_key_file", text)?;
    let interval = keys.with("refresh_interval", text)?;
    keys.ignore_rest(within, ignored);
    let is_duration = |text: &String| {
        text.strip_suffix('s').and_then(|number| number.parse::<f64>().ok()).is_some_and(|seconds| seconds > 0.0)
    };
    if interval.as_ref().is_some_and(|interval| !is_duration(interval)) {
        return Err(Invalid::new("expected seconds such as \"600s\"").at("refresh_interval"));
    }
    let Some(ca_certificate) = ca_certificate else {
        let reason = "missing: the system's own authorities are not used; name a file, such as the system's bundle";
        return Err(Invalid::new(reason).at("ca_certificate_file"));
    };
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        _ => return Err(Invalid::new("certificate_file and private_key_file need each other")),
    };
    Ok(ClientTlsFiles { ca_certificate: ca_certificate.into(), identity })
}

fn node(value: Value, ignored: &mut Vec<String>) -> Result<Node, Invalid> {
    let mut keys = Keys::of(value)?;
    let node = Node {
        id: keys.with("id", text)?.unwrap_or_default(),
        cluster: keys.with("cluster", text)?.unwrap_or_default(),
        locality: keys.with("locality", |value| locality(value, ignored))?.unwrap_or_default(),
        metadata: keys.with("metadata", |value| Keys::of(value).map(|keys| keys.0))?.unwrap_or_default(),
    };
    keys.ignore_rest("node.", ignored);
    Ok(node)
}

fn locality(value: Value, ignored: &mut Vec<String>) -> Result<Locality, Invalid> {
    let mut keys = Keys::of(value)?;
    let mut part = |key: &str| keys.with(key, text).map(|part| Arc::from(part.unwrap_or_default()));
    let locality = Locality { region: part("region")?, zone: part("zone")?, sub_zone: part("sub_zone")? };
    keys.ignore_rest("node.locality.", ignored);
    Ok(locality)
}

fn certificate_providers(value: Value) -> Result<BTreeMap<String, CertificateProvider>, Invalid> {
    let providers = Keys::of(value)?.0.into_iter().map(|(name, value)| {
        let provider = Keys::of(value).and_then(|mut keys| {
            let plugin = keys.required("plugin_name")?;
            let plugin = text(plugin).map_err(|invalid| invalid.at("plugin_name"))?;
            Ok(CertificateProvider { plugin, config: keys.take("config").unwrap_or_default() })
        });
        Ok((name.clone(), provider.map_err(|invalid| invalid.at(format!("[{name:?}]")))?))
    });
    providers.collect()
}

fn authorities(value: Value, ignored: &mut Vec<String>) -> Result<BTreeMap<String, Authority>, Invalid> {
    let authorities = Keys::of(value)?.0.into_iter().map(|(name, value)| {
        let authority = authority(&name, value, ignored).map_err(|invalid| invalid.at(format!("[{name:?}]")))?;
        Ok((name, authority))
    });
    authorities.collect()
}

fn authority(name: &str, value: Value, ignored: &mut Vec<String>) -> Result<Authority, Invalid> {
    let mut keys = Keys::of(value)?;
    let template = keys
        .with("client_listener_resource_name_template", text)?
        .filter(|template| !template.is_empty())
        .unwrap_or_else(|| default_template(name));
    let prefix = format!("xdstp://{name}/");
    if !template.starts_with(&prefix) {
        let reason = format!("must start with {prefix:?}");
        return Err(Invalid::new(reason).at("client_listener_resource_name_template"));
    }
    let within = format!("authorities[{name:?}].xds_servers");
    let servers = match keys.take("xds_servers") {
        Some(value) => servers(value, &within, ignored)?,
        None => Vec::new(),
    };
    keys.ignore_rest(&format!("authorities[{name:?}]."), ignored);
    Ok(Authority { client_listener_template: template, servers })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"{"xds_servers": [{"server_uri": "s:1", "channel_creds": [{"type": "insecure"}]}]}"#;

    fn parse(text: &str) -> Result<Bootstrap, String> {
        Bootstrap::from_json(text, "b.json").map_err(|error| error.to_string())
    }

    #[test]
    fn a_whole_bootstrap() {
        let text = r#"{
          "xds_servers": [
            {"server_uri": "dns:///mesh:15010", "channel_creds": [{"type": "google_default"}, {"type": "insecure"}],
             "server_features": ["xds_v3", "delta", "from_the_future"], "call_creds": []},
            {"server_uri": "backup:15010", "channel_creds": [{"type": "insecure", "config": {}}]}
          ],
          "node": {"id": "mesh~10.0.0.1~web.shop~x", "cluster": "web", "build": 1,
                   "locality": {"region": "r", "zone": "z", "rack": 4}, "metadata": {"LABELS": {"app": "web"}}},
          "certificate_providers": {"default": {"plugin_name": "file_watcher", "config": {"a": 1}}},
          "server_listener_resource_name_template": "inbound/%s",
          "client_default_listener_resource_name_template": "out/%s",
          "authorities": {
            "east": {"xds_servers": [{"server_uri": "east:1", "channel_creds": [{"type": "insecure"}]}]},
            "west": {"client_listener_resource_name_template": "xdstp://west/envoy.config.listener.v3.Listener/w/%s"}
          },
          "surprise": true
        }"#;
        let bootstrap = parse(text).unwrap();
        let uris: Vec<&str> = bootstrap.servers.iter().map(|server| server.uri.as_str()).collect();
        assert_eq!(uris, ["dns:///mesh:15010", "backup:15010"]);
        assert!(bootstrap.servers[0].is_incremental() && !bootstrap.servers[1].is_incremental());
        assert_eq!((bootstrap.node.id.as_str(), &*bootstrap.node.locality.zone), ("mesh~10.0.0.1~web.shop~x", "z"));
        assert_eq!(bootstrap.node.metadata["LABELS"]["app"], "web");
        assert_eq!(bootstrap.certificate_providers["default"].plugin, "file_watcher");
        assert_eq!(bootstrap.server_listener_template.as_deref(), Some("inbound/%s"));
        assert_eq!(bootstrap.client_listener_template, "out/%s");
        assert_eq!(bootstrap.authorities["east"].servers[0].uri, "east:1");
        assert!(bootstrap.authorities["west"].servers.is_empty());
        let ignored = ["xds_servers[0].call_creds", "node.locality.rack", "node.build", "surprise"];
        assert_eq!(bootstrap.ignored, ignored);
    }

    #[test]
    fn the_first_credentials_that_are_supported_count() {
        let credentials = |list: &str| {
            let text = format!(r#"{{"xds_servers": [{{"server_uri": "s:1", "channel_creds": {list}}}]}}"#);
            let bootstrap = parse(&text).unwrap();
            (bootstrap.servers[0].credentials.clone(), bootstrap.ignored)
        };
        let tls = r#"{"type": "tls", "config": {"ca_certificate_file": "ca.pem", "certificate_file": "c.pem",
                      "private_key_file": "k.pem", "refresh_interval": "60s", "surprise": 1}}"#;
        let files = ChannelCredentials::Tls(ClientTlsFiles::new("ca.pem").identity("c.pem", "k.pem"));
        let (found, ignored) =
            credentials(&format!(r#"[{{"type": "google_default"}}, {tls}, {{"type": "insecure"}}]"#));
        assert_eq!((found, ignored), (files, vec!["xds_servers[0].channel_creds[1].config.surprise".to_owned()]));
        assert_eq!(credentials(&format!(r#"[{{"type": "insecure"}}, {tls}]"#)).0, ChannelCredentials::Insecure);
    }

    #[test]
    fn the_smallest_bootstrap() {
        let bootstrap = parse(MINIMAL).unwrap();
        assert_eq!(bootstrap.node, Node::default());
        assert_eq!(bootstrap.client_listener_template, "%s");
        assert_eq!(bootstrap.server_listener_template, None);
    }

    #[test]
    fn a_wrong_bootstrap_says_which_key() {
        let server = |rest: &str| format!(r#"{{"xds_servers": [{{{rest}}}]}}"#);
        let with = |rest: &str| format!("{}, {rest}}}", MINIMAL.strip_suffix('}').unwrap());
        let cases = [
            ("{\n  \"xds_servers\": [}".to_owned(), "line 2, column 19: expected value"),
            ("[]".to_owned(), "expected an object, found a list"),
            ("{}".to_owned(), "xds_servers: missing"),
            (r#"{"xds_servers": []}"#.to_owned(), "xds_servers: at least one"),
            (r#"{"xds_servers": {}}"#.to_owned(), "xds_servers: expected a list, found an object"),
            (server(""), "xds_servers[0].server_uri: missing"),
            (server(r#""server_uri": 1"#), "xds_servers[0].server_uri: expected a string, found a number"),
            (server(r#""server_uri": "no port""#), "xds_servers[0].server_uri: "),
            (server(r#""server_uri": "s:1""#), "xds_servers[0].channel_creds: missing"),
            (server(r#""server_uri": "s:1", "channel_creds": []"#), "xds_servers[0].channel_creds: no supported"),
            (
                server(r#""server_uri": "s:1", "channel_creds": [{"type": "google_default"}, {"type": "alts"}]"#),
                r#"xds_servers[0].channel_creds: no supported kind among ["google_default", "alts"]"#,
            ),
            (
                server(r#""server_uri": "s:1", "channel_creds": [{"type": "tls"}]"#),
                "xds_servers[0].channel_creds[0].config.ca_certificate_file: missing",
            ),
            (
                server(
                    r#""server_uri": "s:1", "channel_creds": [{"type": "tls", "config":
                       {"spiffe_trust_bundle_map_file": "m", "ca_certificate_file": "c"}}]"#,
                ),
                "xds_servers[0].channel_creds[0].config.spiffe_trust_bundle_map_file: not supported",
            ),
            (
                server(
                    r#""server_uri": "s:1", "channel_creds": [{"type": "tls", "config":
                       {"ca_certificate_file": "a", "certificate_file": "c"}}]"#,
                ),
                "xds_servers[0].channel_creds[0].config: certificate_file and private_key_file",
            ),
            (
                server(
                    r#""server_uri": "s:1", "channel_creds": [{"type": "tls", "config": {"refresh_interval": "x"}}]"#,
                ),
                "channel_creds[0].config.refresh_interval: expected seconds",
            ),
            (
                server(r#""server_uri": "s:1", "channel_creds": [{"type": "insecure"}], "server_features": "x""#),
                "xds_servers[0].server_features: expected a list",
            ),
            (with(r#""node": {"id": 7}"#), "node.id: expected a string, found a number"),
            (with(r#""node": {"locality": {"zone": []}}"#), "node.locality.zone: expected a string"),
            (with(r#""certificate_providers": {"p": {}}"#), r#"certificate_providers["p"].plugin_name: missing"#),
            (
                with(r#""authorities": {"a": {"client_listener_resource_name_template": "xdstp://b/x"}}"#),
                r#"authorities["a"].client_listener_resource_name_template: must start with "xdstp://a/""#,
            ),
            (
                with(r#""authorities": {"a": {"xds_servers": [{}]}}"#),
                r#"authorities["a"].xds_servers[0].server_uri: missing"#,
            ),
        ];
        for (text, expected) in cases {
            let error = parse(&text).unwrap_err();
            assert!(error.starts_with("xDS bootstrap b.json: "), "{error}");
            assert!(error.contains(expected), "expected {expected:?} in {error:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Bootstrap::from_file(std::path::Path::new("no/such/file.json")).unwrap_err();
        assert!(error.to_string().starts_with("xDS bootstrap no/such/file.json: "), "{error}");
    }
}

//! Where Redis is: one server, a master that sentinels know, or a cluster.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use redis::cluster::ClusterClient;
use redis::sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType};
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo, RedisResult, TlsMode};

use super::link::Link;

/// How long connecting may take, of which dialling a cluster or asking a sentinel takes several.
const CONNECT: Duration = Duration::from_secs(1);

/// The address of a Redis.
///
/// ```
/// use mesh_control::ratelimit::RedisUrl;
///
/// for url in [
///     "redis://127.0.0.1:6379",
///     "rediss://user:secret@redis.example:6380/2",
///     "redis+sentinel://one:26379,two:26379/mymaster",
///     "redis+cluster://one:6379,two:6379,three:6379",
/// ] {
///     let url: RedisUrl = url.parse().expect("one of the four");
///     assert!(!url.to_string().contains("secret"), "it is shown without its password");
/// }
/// assert!("http://127.0.0.1".parse::<RedisUrl>().is_err());
/// ```
#[derive(Clone)]
pub struct RedisUrl {
    kind: Kind,
    /// Without the password.
    shown: String,
}

#[derive(Clone)]
enum Kind {
    One(ConnectionInfo),
    Sentinel { sentinels: Vec<ConnectionInfo>, master: String, node: SentinelNodeConnectionInfo },
    Cluster(Vec<ConnectionInfo>),
}

/// What is wrong with an address. It does not repeat the address, which may have a password in it.
const EXPECTED: &str = "expected redis://[[USER]:PASSWORD@]HOST[:PORT][/DB], redis+sentinel://[..@]HOST:PORT,HOST:PORT/MASTER[/DB] or \
    redis+cluster://[..@]HOST:PORT,HOST:PORT, each with rediss for TLS";

impl FromStr for RedisUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<RedisUrl, String> {
        let (scheme, rest) = text.split_once("://").ok_or(EXPECTED)?;
        let (tls, kind) = match scheme.split_once('+') {
            None => (scheme, ""),
            Some((tls, kind)) => (tls, kind),
        };
        if !matches!(tls, "redis" | "rediss") || !matches!(kind, "" | "sentinel" | "cluster") {
            return Err(EXPECTED.to_owned());
        }
        let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(user, rest)| (user, rest));
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        // What stands behind these would be passed over.
        if rest.contains(['?', '#']) {
            return Err(EXPECTED.to_owned());
        }
        let shown = format!("{scheme}://{rest}");
        let user = if user.is_empty() { String::new() } else { format!("{user}@") };
        let info = |user: &str, host: &str, db: &str| {
            let url = format!("{tls}://{user}{host}/{db}");
            let info =
                url.into_connection_info().map_err(|error| format!("{host}: {}: {EXPECTED}", error.category()))?;
            let is_database = info.redis_settings().db() >= 0;
            is_database.then_some(info).ok_or_else(|| format!("{host}: {db} is no database: {EXPECTED}"))
        };
        let infos = |user: &str| hosts.split(',').map(|host| info(user, host, "")).collect::<Result<Vec<_>, _>>();
        let kind = match kind {
            "" => Kind::One(info(&user, hosts, path)?),
            "cluster" if path.is_empty() => Kind::Cluster(infos(&user)?),
            "sentinel" => {
                let (master, db) = path.split_once('/').unwrap_or((path, ""));
                if master.is_empty() {
                    return Err(format!("the name of the master is missing: {EXPECTED}"));
                }
                // The user is for the master: sentinels seldom have any.
                let node = info(&user, "localhost", db)?.redis_settings().clone();
                let node = SentinelNodeConnectionInfo::default().set_redis_connection_info(node);
                let node = if tls == "rediss" { node.set_tls_mode(TlsMode::Secure) } else { node };
                Kind::Sentinel { sentinels: infos("")?, master: master.to_owned(), node }
            }
            _ => return Err(EXPECTED.to_owned()),
        };
        Ok(RedisUrl { kind, shown })
    }
}

impl RedisUrl {
    /// Connects; where there are sentinels, to whom they say is the master now.
    pub(super) async fn dial(&self) -> RedisResult<Link> {
        // Answers are waited for by whoever asks, and no longer.
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(None);
        match &self.kind {
            Kind::One(info) => {
                let client = Client::open(info.clone())?;
                client.get_multiplexed_async_connection_with_config(&config).await.map(Link::One)
            }
            Kind::Sentinel { sentinels, master, node } => {
                let (sentinels, node) = (sentinels.clone(), Some(node.clone()));
                let mut client = SentinelClient::build(sentinels, master, node, SentinelServerType::Master)?;
                client.get_async_connection_with_config(&config).await.map(Link::One)
            }
            Kind::Cluster(nodes) => {
                let client = ClusterClient::builder(nodes.clone())
                    .connection_timeout(CONNECT)
                    .retries(1)
                    .max_connection_attempts(NonZeroUsize::MIN)
                    .build()?;
                client.get_async_connection().await.map(Link::Cluster)
            }
        }
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_wrong_is_refused_and_its_password_not_repeated() {
        for text in [
            "",
            "127.0.0.1:6379",
            "redis://",
            "http://127.0.0.1:6379",
            "redis+other://127.0.0.1:6379",
            "redis://:secret@127.0.0.1:nonsense",
            "redis://:secret@127.0.0.1:6379/notanumber",
            "redis://:secret@127.0.0.1:6379/-1",
            "redis://:secret@127.0.0.1:6379?db=5",
            "redis://:secret@127.0.0.1:6379/0?db=5",
            "rediss://:secret@127.0.0.1:6379/0#insecure",
            "redis+sentinel://:secret@127.0.0.1:26379/main/-1",
            "redis+sentinel://:secret@127.0.0.1:26379",
            "redis+cluster://:secret@127.0.0.1:6379/1",
        ] {
            let why = text.parse::<RedisUrl>().expect_err(text);
            assert!(why.contains("expected redis://") && !why.contains("secret"), "{text}: {why}");
        }
    }
}

//! Lists of objects, page by page.

use std::time::Duration;

use anyhow::anyhow;
use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::client::{Client, Failure};
use super::kinds::Resource;

/// Objects of one answer.
const PAGE: u32 = 500;
/// How long a list may take, page by page.
pub(super) const LIST: Duration = Duration::from_secs(60);
/// How often a list begins anew whose pages have grown too old, and how many bytes all of its pages may have.
const MOST_BEGUN: u32 = 3;
const MOST_LISTED: usize = 1 << 30;

#[derive(Deserialize)]
struct List {
    metadata: ListMeta,
    items: Option<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue", default)]
    next: String,
}

/// All objects of a kind, of one namespace or of all, in the best version that is served, which is told, and the version that the list
/// is of; `None` where no version is served.
///
/// # Errors
/// Why nobody can tell.
pub(crate) async fn list_any(
    client: &Client,
    resource: &Resource,
    namespace: Option<&str>,
) -> Result<Option<(&'static str, Vec<Value>, String)>, String> {
    for version in resource.versions {
        match list(client, &resource.path(version, namespace), resource.selector()).await {
            Ok((items, at)) => return Ok(Some((version, items, at))),
            Err(Failure::Status(StatusCode::NOT_FOUND, _)) if resource.may_be_absent() => {}
            Err(failure) => return Err(failure.to_string()),
        }
    }
    // While it starts, a server does not know its kinds yet.
    match client.get("/readyz", LIST).await {
        Ok(_) => Ok(None),
        Err(failure) => Err(format!("nobody can tell whether there is such a kind: {failure}")),
    }
}

/// All objects at a path, and the version that the list is of. The selector begins with `&`.
///
/// # Errors
/// There is no answer, or none that makes sense.
pub(crate) async fn list(client: &Client, path: &str, selector: &str) -> Result<(Vec<Value>, String), Failure> {
    let mut items = Vec::new();
    let (mut next, mut bytes_of_all, mut begun) = (String::new(), 0_usize, 0);
    loop {
        let from = if next.is_empty() { String::new() } else { format!("&continue={next}") };
        let page = format!("{path}?limit={PAGE}{selector}{from}");
        let bytes = match client.get(&page, LIST).await {
            // The pages that are left have grown too old: from the beginning.
            Err(Failure::Status(StatusCode::GONE, _)) if !next.is_empty() && begun < MOST_BEGUN => {
                (items, next, bytes_of_all) = Default::default();
                begun += 1;
                continue;
            }
            answer => answer?,
        };
        let list: List = serde_json::from_slice(&bytes).map_err(|error| Failure::Lost(error.into()))?;
        items.extend(list.items.into_iter().flatten());
        if list.metadata.next.is_empty() {
            return Ok((items, list.metadata.resource_version));
        }
        bytes_of_all = bytes_of_all.saturating_add(bytes.len());
        if bytes_of_all > MOST_LISTED || list.metadata.next == next {
            let why = anyhow!("a list without an end, or of more than {} MiB", MOST_LISTED >> 20);
            return Err(Failure::Lost(why));
        }
        next = list.metadata.next;
    }
}

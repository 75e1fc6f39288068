//! What reads bytes that whoever writes to etcd, serves it or asks the API has chosen: for fuzzers, and no API. Each function panics
//! where something does not hold that has to, whatever the bytes are.

use prost::Message;
use tokio::time::Instant;

use super::keys::{Prefix, text};
use super::known::{Event, Known, Subject};
use super::proto::{ResponseHeader, WatchResponse};
use crate::changes::{Documents, Entry, Id, Wanted, What};
use crate::config::diagnostic::stored_name;
use crate::config::load::Scan;
use crate::config::{Source, file};

/// The rest of a key and its value: it is the object of its key, whatever the value says, or no object.
pub fn value(path: &str, value: &[u8]) {
    _ = serde_json::from_slice::<Entry>(value);
    let text = text(path, value);
    let read = file::read(Source { name: stored_name(path), text });
    let Ok(id) = Id::parse_path(path) else { return };
    assert_eq!(id.path(), path);
    let others = read.items.iter().map(|item| item.meta().id().to_string()).find(|other| *other != id.to_string());
    assert_eq!(others, None, "the value of {id} is another object");
}

/// Answers of a watch: nothing changes but what is below the prefix, and no revision is taken back.
pub fn answers<'b>(answers: impl IntoIterator<Item = &'b [u8]>) {
    let Ok(prefix) = Prefix::parse("/mesh") else { return };
    let mut known = Known::new(Subject::objects(&prefix));
    known.list(ResponseHeader { cluster_id: 1, member_id: 1, revision: 1 }, &[], Instant::now());
    for answer in answers {
        let Ok(answer) = WatchResponse::decode(answer) else { continue };
        let before = known.revision;
        match known.event(answer) {
            Event::Changed(changed) => {
                let root = stored_name("");
                assert!(changed.keys().all(|name| name.starts_with(&*root) && name.len() > root.len()));
            }
            Event::Expired(_) => known.expire(),
            Event::Silent | Event::Failed(_) => {}
        }
        assert!(known.revision >= before, "revision {} after {before}", known.revision);
    }
}

/// The body of a change that the API is asked for: each object that it names is found by its own path.
pub fn wanted(body: &[u8]) {
    let Ok(wanted) = serde_json::from_slice::<Wanted>(body) else { return };
    let ids: Vec<Id> = match &wanted.what {
        What::Apply(files) => {
            let mut scan = Scan::default();
            scan.files.extend(files.iter().map(|(name, text)| (name.as_str().into(), Ok(text.as_str().into()))));
            let Ok(documents) = Documents::read(&scan) else { return };
            for (id, written) in &documents.objects {
                value(&id.path(), written.text.as_bytes());
            }
            documents.objects.into_keys().collect()
        }
        What::Delete(paths) => paths.iter().filter_map(|path| Id::parse_path(path).ok()).collect(),
        What::Rollback(_) => Vec::new(),
    };
    for id in ids {
        assert_eq!(Id::parse_path(&id.path()).as_ref(), Ok(&id));
    }
}

//! `get` and `history`.

use anyhow::{anyhow, bail};
use mesh_core::printable::printable;

use super::Place;
use crate::changes::{All, Entry, Id, resource_named, versioned};
use crate::cli::status::section;
use crate::cli::{Format, Printing, say};
use crate::config::yaml::yaml;

/// Shows the objects of a store: all, those of a kind, or one, as YAML. As JSON, one object a line. Each has its version, by which
/// `apply` sees whether somebody else has changed it.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Get {
    /// The kind: VirtualService, virtualservices.
    kind: Option<String>,
    /// The name.
    name: Option<String>,
    /// The namespace; unless set, all of them, or `default` where a name is given.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    printing: Printing,
}

/// Shows who has changed which objects of a store, the last change first. The last 200 changes are kept, in a Kubernetes cluster 50.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct History {
    /// So many changes.
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    printing: Printing,
}

pub(in crate::cli) async fn get(args: &Get) -> anyhow::Result<()> {
    let resource = args.kind.as_deref().map(resource_named).transpose().map_err(|why| anyhow!(why))?;
    let (all, strange) = args.place.objects().await?;
    for key in &strange {
        eprintln!("mesh-control: {} is the key of no object", printable(key));
    }
    let namespace = match (&args.namespace, &args.name) {
        (None, Some(_)) => Some("default"),
        (namespace, _) => namespace.as_deref(),
    };
    let found: All = all.into_iter().filter(|(id, _)| id.matches(resource, namespace, args.name.as_deref())).collect();
    if let (Some(kind), Some(name), true) = (&args.kind, &args.name, found.is_empty()) {
        bail!("there is no {kind} {}/{name}", namespace.unwrap_or_default());
    }
    match args.printing.format() {
        Format::Json => {
            let lines = found.values().map(|stored| format!("{}\n", versioned(stored)));
            say(&lines.collect::<String>())?;
        }
        Format::Text if args.name.is_some() => {
            let objects: Vec<String> = found.values().map(|stored| yaml(&versioned(stored))).collect();
            say(&objects.join("---\n"))?;
        }
        Format::Text if found.is_empty() => eprintln!("mesh-control: there is no such object"),
        Format::Text => say(&table(&found))?,
    }
    Ok(())
}

fn table(found: &All) -> String {
    let head = ["KIND", "NAMESPACE", "NAME", "VERSION"].map(str::to_owned);
    let rows = found.iter().map(|(id, stored)| {
        [id.resource.kind.to_owned(), id.namespace.to_string(), id.name.to_string(), stored.version.to_string()]
    });
    let mut out = String::new();
    section(std::iter::once(head).chain(rows).collect(), &mut out);
    out.trim_start().to_owned()
}

pub(in crate::cli) async fn history(args: &History) -> anyhow::Result<()> {
    let entries = args.place.history().await?.into_iter().take(args.limit);
    match args.printing.format() {
        Format::Json => {
            let lines = entries.map(|entry| Ok(format!("{}\n", serde_json::to_string(&entry)?)));
            say(&lines.collect::<anyhow::Result<String>>()?)?;
        }
        Format::Text => say(&entries.map(|entry| past(&entry)).collect::<String>())?,
    }
    Ok(())
}

fn past(entry: &Entry) -> String {
    let message = if entry.message.is_empty() { String::new() } else { format!(": {}", entry.message) };
    let mut text = format!("{}  {}\n", entry.number, printable(&format!("{}  {}{message}", entry.time, entry.author)));
    for changed in &entry.objects {
        let object = Id::parse_path(&changed.object).map_or_else(|_| changed.object.clone(), |id| id.to_string());
        text += &format!("    {}\n", printable(&format!("{object} {}", changed.verb)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changes::Stored;

    #[test]
    fn columns_are_as_wide_as_their_texts() {
        let id = Id::named("Service", "shop", "web").expect("good");
        let found = All::from([(id, Stored { text: "{}".into(), version: 12 })]);
        assert_eq!(table(&found), "KIND     NAMESPACE  NAME  VERSION\nService  shop       web   12\n");
    }
}

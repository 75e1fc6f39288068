//! `apply`, `diff`, `delete` and `rollback`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{anyhow, bail};

use super::Place;
use crate::changes::{Documents, Done, Id, Refusal, Wanted, What};
use crate::cli::{Format, Printing, say, validate};
use crate::config::load::{Reach, Scan};

/// Puts the objects of files into a store, all of them or none, as `kubectl apply` does. What `validate` refuses is refused, looked at
/// together with what is there.
///
/// An object whose metadata has a resourceVersion, as `get` prints it, is only changed if it still has that version. The exit code is
/// 3 where the objects are refused.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Apply {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    why: Why,
    /// Only says what would be done.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    printing: Printing,
}

/// Shows what `apply` would change, line by line. The exit code is 1 if there is a difference, 3 where the objects are refused.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Diff {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    printing: Printing,
}

/// Takes objects out of a store: one by its kind and name, or those of files.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Delete {
    /// The kind: VirtualService, virtualservices.
    #[arg(required_unless_present = "files", requires = "name")]
    kind: Option<String>,
    /// The name.
    name: Option<String>,
    /// The namespace.
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    /// Files with the objects, `-` for stdin.
    #[arg(short, long = "file", value_name = "PATH", id = "files", conflicts_with = "kind")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    why: Why,
    /// Only says what would be done.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    printing: Printing,
}

/// Makes all objects what they were after an earlier change (see `history`), by one more change.
///
/// Refused where an object was changed meanwhile by somebody who wrote no history, and where `validate` would refuse the result.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Rollback {
    /// The number of that change. Without it, the last change is taken back.
    #[arg(long, value_name = "NUMBER")]
    to_change: Option<u64>,
    #[command(flatten)]
    why: Why,
    /// Only says what would be done.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    printing: Printing,
}

/// Files with objects.
#[derive(Clone, Debug, clap::Args)]
struct Files {
    /// A file or a directory with objects, `-` for stdin. May be given several times.
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    files: Vec<PathBuf>,
    /// Reads directories below these, too.
    #[arg(short = 'R', long)]
    recursive: bool,
}

/// What the history says of a change.
#[derive(Clone, Debug, clap::Args)]
struct Why {
    /// Who changes it, for the history; unless set, the user of etcd, or who runs the command.
    #[arg(long, value_name = "NAME")]
    author: Option<String>,
    /// Why, for the history.
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    message: String,
}

impl Files {
    fn apply(&self) -> anyhow::Result<What> {
        Ok(What::Apply(texts(&self.files, Reach::recursive(self.recursive))?))
    }
}

/// The texts of files, by name.
fn texts(paths: &[PathBuf], reach: Reach) -> anyhow::Result<BTreeMap<String, String>> {
    let mut scan = Scan::default();
    for path in paths {
        validate::read(path, reach, &mut scan)?;
    }
    let texts = scan.files.into_iter().map(|(name, text)| match text {
        Ok(text) => Ok((name.to_string(), text.to_string())),
        Err(unreadable) => Err(anyhow!("cannot read {name}: {}", unreadable.why)),
    });
    texts.collect()
}

pub(in crate::cli) async fn apply(args: &Apply) -> anyhow::Result<ExitCode> {
    let wanted = Wanted { what: args.files.apply()?, message: args.why.message.clone(), dry_run: args.dry_run };
    carry_out(&args.place, wanted, args.why.author.as_deref(), args.printing).await
}

pub(in crate::cli) async fn rollback(args: &Rollback) -> anyhow::Result<ExitCode> {
    let (what, message) = (What::Rollback(args.to_change), args.why.message.clone());
    let wanted = Wanted { what, message, dry_run: args.dry_run };
    carry_out(&args.place, wanted, args.why.author.as_deref(), args.printing).await
}

pub(in crate::cli) async fn delete(args: &Delete) -> anyhow::Result<ExitCode> {
    let ids = match args.kind.as_ref().zip(args.name.as_ref()) {
        Some((kind, name)) => vec![Id::named(kind, &args.namespace, name).map_err(|why| anyhow!(why))?],
        None => {
            let mut scan = Scan::default();
            for path in &args.files {
                validate::read(path, Reach::Directory, &mut scan)?;
            }
            let documents = Documents::read(&scan)
                .map_err(|wrong| anyhow!("{}", wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
            documents.objects.into_keys().collect()
        }
    };
    if ids.is_empty() {
        bail!("there is no object of the mesh in these files");
    }
    let what = What::Delete(ids.iter().map(Id::path).collect());
    let wanted = Wanted { what, message: args.why.message.clone(), dry_run: args.dry_run };
    carry_out(&args.place, wanted, args.why.author.as_deref(), args.printing).await
}

pub(in crate::cli) async fn diff(args: &Diff) -> anyhow::Result<ExitCode> {
    let wanted = Wanted { what: args.files.apply()?, message: String::new(), dry_run: true };
    let done = match args.place.carry_out(&wanted, None).await {
        Ok(done) => done,
        Err(refusal) => return refused(refusal),
    };
    match args.printing.format() {
        Format::Json => say(&format!("{}\n", serde_json::to_string(&done)?))?,
        Format::Text => say(&done.objects.iter().map(|object| object.diff.as_str()).collect::<String>())?,
    }
    let is_same = done.objects.iter().all(|object| object.diff.is_empty());
    Ok(if is_same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn carry_out(
    place: &Place,
    wanted: Wanted,
    author: Option<&str>,
    printing: Printing,
) -> anyhow::Result<ExitCode> {
    let done = match place.carry_out(&wanted, author).await {
        Ok(done) => done,
        Err(refusal) => return refused(refusal),
    };
    match printing.format() {
        Format::Json => say(&format!("{}\n", serde_json::to_string(&done)?))?,
        Format::Text => say(&text(&done, wanted.dry_run))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What is wrong with the objects has an exit code of its own.
fn refused(error: anyhow::Error) -> anyhow::Result<ExitCode> {
    let is_refused = matches!(error.downcast_ref(), Some(Refusal::Invalid(_) | Refusal::Conflict(_)));
    if !is_refused {
        return Err(error);
    }
    eprintln!("mesh-control: {error}");
    Ok(ExitCode::from(3))
}

fn text(done: &Done, is_dry_run: bool) -> String {
    let dry = if is_dry_run { " (dry run)" } else { "" };
    let mut text: String = done.left_out.iter().map(|why| format!("left out: {why}\n")).collect();
    text.extend(done.objects.iter().map(|object| format!("{} {}{dry}\n", object.object, object.verb)));
    match done.number {
        Some(number) => text += &format!("change {number}\n"),
        None if !is_dry_run => text += "nothing had to change\n",
        None => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changes::DoneWith;

    #[test]
    fn what_was_done_is_a_line_each() {
        let object =
            DoneWith { object: "Service shop/web".to_owned(), verb: "created".to_owned(), diff: String::new() };
        let done = Done {
            number: Some(7),
            objects: vec![object],
            left_out: vec!["Pod of v1 is not read by the mesh".to_owned()],
        };
        let expected = "left out: Pod of v1 is not read by the mesh\nService shop/web created\nchange 7\n";
        assert_eq!(text(&done, false), expected);
        assert_eq!(
            text(&Done { number: None, left_out: Vec::new(), ..done }, true),
            "Service shop/web created (dry run)\n"
        );
        assert_eq!(text(&Done::default(), false), "nothing had to change\n");
    }
}

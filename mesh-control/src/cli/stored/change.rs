//! `apply`, `diff`, `delete` and `rollback`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{anyhow, bail};

use super::{By, Place};
use crate::changes::{Documents, Done, Id, Refusal, Wanted, What};
use crate::cli::{Format, Printing, say, validate};
use crate::config::load::{Reach, Scan};

/// Puts the objects of files into a store, all of them or none, as `kubectl apply` does. What `validate` refuses is refused, looked at
/// together with what is there. A Kubernetes cluster has no transactions: it is asked about all of them before the first one is changed.
///
/// An object whose metadata has a resourceVersion, as `get` prints it, is only changed if it still has that version. The exit code is
/// 3 where the objects are refused.
#[derive(Clone, Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("objects").arg("files").required(true)))]
pub(in crate::cli) struct Apply {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    change: Change,
}

/// Shows what `apply` would change, line by line. The exit code is 1 if there is a difference, 3 where the objects are refused.
#[derive(Clone, Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("objects").arg("files").required(true)))]
pub(in crate::cli) struct Diff {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    force: Force,
    #[command(flatten)]
    printing: Printing,
}

/// Takes objects out of a store: one by its kind and name, or those of files.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Delete {
    /// The kind: VirtualService, virtualservices.
    #[arg(required_unless_present = "files", conflicts_with = "files", requires = "name")]
    kind: Option<String>,
    /// The name.
    name: Option<String>,
    /// The namespace.
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    change: Change,
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
    change: Change,
}

/// Files with objects.
#[derive(Clone, Debug, clap::Args)]
struct Files {
    /// A file or a directory with objects, `-` for stdin. May be given several times.
    #[arg(short, long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Reads directories below these, too.
    #[arg(short = 'R', long, requires = "files")]
    recursive: bool,
}

/// What becomes of what others have applied.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Force {
    /// Takes over fields of objects of a cluster that somebody else has applied, as `kubectl apply --force-conflicts` does. Without it,
    /// that is refused.
    #[arg(long, requires = "kubernetes")]
    force_conflicts: bool,
}

/// What every change has.
#[derive(Clone, Debug, clap::Args)]
struct Change {
    /// Who changes it, for the history; unless set, the user of etcd, or who runs the command. A server, or a cluster, knows it.
    #[arg(long, value_name = "NAME")]
    author: Option<String>,
    /// Why, for the history.
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    message: String,
    /// Only says what would be done.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    force: Force,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    printing: Printing,
}

impl Files {
    /// # Errors
    /// Where one of them cannot be read: nobody knows what it would have said.
    fn scan(&self) -> anyhow::Result<Scan> {
        let mut scan = Scan::default();
        for path in &self.files {
            validate::read(path, Reach::recursive(self.recursive), &mut scan)?;
        }
        let unreadable = scan.files.iter().find_map(|(name, text)| Some((name, text.as_ref().err()?)));
        match unreadable {
            Some((name, unreadable)) => bail!("cannot read {name}: {}", unreadable.why),
            None => Ok(scan),
        }
    }

    fn apply(&self) -> anyhow::Result<What> {
        let files = self.scan()?.files.into_iter();
        Ok(What::Apply(files.filter_map(|(name, text)| Some((name.to_string(), text.ok()?.to_string()))).collect()))
    }

    fn delete(&self) -> anyhow::Result<What> {
        let documents = Documents::read(&self.scan()?)
            .map_err(|wrong| anyhow!("{}", wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
        if documents.objects.is_empty() {
            bail!("there is no object of the mesh in these files");
        }
        Ok(What::Delete(documents.objects.keys().map(Id::path).collect()))
    }
}

impl Change {
    async fn carry_out(&self, what: What) -> anyhow::Result<ExitCode> {
        let wanted = Wanted { what, message: self.message.clone(), dry_run: self.dry_run };
        let by = By { author: self.author.as_deref(), forces: self.force.force_conflicts };
        let done = match self.place.carry_out(&wanted, by).await {
            Ok(done) => done,
            Err(refusal) => return refused(refusal),
        };
        match self.printing.format() {
            Format::Json => say(&format!("{}\n", serde_json::to_string(&done)?))?,
            Format::Text => say(&text(&done, self.dry_run))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

pub(in crate::cli) async fn apply(args: &Apply) -> anyhow::Result<ExitCode> {
    args.change.carry_out(args.files.apply()?).await
}

pub(in crate::cli) async fn rollback(args: &Rollback) -> anyhow::Result<ExitCode> {
    args.change.carry_out(What::Rollback(args.to_change)).await
}

pub(in crate::cli) async fn delete(args: &Delete) -> anyhow::Result<ExitCode> {
    let what = match args.kind.as_ref().zip(args.name.as_ref()) {
        Some((kind, name)) => {
            let id = Id::named(kind, &args.namespace, name).map_err(|why| anyhow!(why))?;
            What::Delete(vec![id.path()])
        }
        None => args.files.delete()?,
    };
    args.change.carry_out(what).await
}

pub(in crate::cli) async fn diff(args: &Diff) -> anyhow::Result<ExitCode> {
    let wanted = Wanted { what: args.files.apply()?, message: String::new(), dry_run: true };
    let by = By { author: None, forces: args.force.force_conflicts };
    let done = match args.place.carry_out(&wanted, by).await {
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
    use clap::{Args, Command};

    use super::*;
    use crate::changes::DoneWith;

    #[test]
    fn objects_are_named_or_in_files_and_these_are_all_read() {
        let is_good = |command: Command, args: &str| {
            command.no_binary_name(true).try_get_matches_from(args.split(' ').filter(|arg| !arg.is_empty())).is_ok()
        };
        let new = || Command::new("change");
        for (args, of_files, is_delete) in [
            ("-f a.yaml", true, true),
            ("-R -f a -f b", true, true),
            ("", false, false),
            ("-R", false, false),
            ("service", false, false),
            ("service web", false, true),
            ("service web -f a.yaml", false, false),
            ("-k --kubeconfig c --force-conflicts -f a.yaml", true, true),
            ("-k --etcd http://127.0.0.1:1 -f a.yaml", false, false),
            ("--force-conflicts -f a.yaml", false, false),
        ] {
            assert_eq!(is_good(Apply::augment_args(new()), args), of_files, "apply {args}");
            assert_eq!(is_good(Diff::augment_args(new()), args), of_files, "diff {args}");
            assert_eq!(is_good(Delete::augment_args(new()), args), is_delete, "delete {args}");
        }

        let folder = tempfile::tempdir().expect("a directory");
        let below = folder.path().join("below");
        std::fs::create_dir(&below).expect("made");
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";
        std::fs::write(below.join("web.yaml"), service).expect("written");
        let files = |recursive| Files { files: vec![folder.path().to_owned()], recursive };
        assert!(files(false).delete().is_err(), "it is below");
        assert_eq!(files(true).delete().expect("one object"), What::Delete(vec!["services/default/web".to_owned()]));
        std::fs::write(below.join("other.yaml"), b"\xff\xfe").expect("written");
        for what in [files(true).delete(), files(true).apply()] {
            let why = what.expect_err("one cannot be read").to_string();
            assert!(why.contains("cannot read") && why.contains("other.yaml"), "{why}");
        }
    }

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

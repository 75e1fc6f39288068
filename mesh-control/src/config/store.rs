//! What is in force, object by object: what the texts say, and the last good state of what they do not say well.
//!
//! An object that is wrong leaves its last good state in force, and so do all objects of a text that is empty, cannot be
//! read, or holds something of which nobody can tell which object it is. As long as there is such a text, no object that
//! disappears from another one is taken for gone: it may have moved there. A directory that is suddenly empty takes away
//! nothing at all: a bad edit or a lost mount must not change any route. A wrong object that has no last good state is
//! handed on as such, so that what it governs fails closed. All of that is visible.
//!
//! An object of a cluster is a text of its own, which says whose it is by its name: nobody need guess what became of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::diagnostic::{Code, Diagnostic, Severity, Source, is_resource};
use super::file::{self, Governs, Item, Meta, Object, ObjectKey, Objects, ParsedFile, PodLabels, Refused};
use super::load::{Scan, Unreadable, printable};
use super::state::{Good, State};
use super::support::ObjectKind;

/// Every text, and every object that is in force.
#[derive(Debug, Default)]
pub struct Store {
    texts: BTreeMap<Arc<str>, Text>,
    /// The last good state of every object that is in force.
    good: BTreeMap<ObjectKey, Good>,
    loaded: Loaded,
    state: Option<State>,
    notes: Vec<Diagnostic>,
    alarm: Option<Diagnostic>,
    /// That the settings of the mesh are gone that were in force.
    lost_settings: Option<Diagnostic>,
    allow_empty: bool,
    /// Whether a directory was looked at before: there is a state of it that goes on.
    has_looked: bool,
}

#[derive(Clone, Debug, Default)]
struct Text {
    seen: Option<Result<Arc<str>, Unreadable>>,
    /// What it was at the last look, and was not believed: it may be the first half of what somebody still writes.
    doubted: Option<Arc<str>>,
    /// Not of the directory: it was handed in.
    is_handed_in: bool,
    items: Vec<Item>,
    /// Workloads that other documents of it make.
    pods: Vec<PodLabels>,
    /// What it held and does not hold any more stays: nobody can tell what it holds now.
    keeps: bool,
    /// What nobody could read.
    unread: Vec<Diagnostic>,
    diagnostics: Vec<Diagnostic>,
    /// Why it was refused as a whole, so that what it said before stands. Only of what is handed in.
    refused: Vec<Diagnostic>,
}

/// What a place says that it holds.
#[derive(Debug)]
pub enum Update {
    /// A directory was looked at.
    Directory(io::Result<Scan>),
    /// Objects of a cluster have changed.
    Resources {
        /// Those that are others now.
        changed: Resources,
        /// Why nobody knows since when that is all, where the cluster cannot be followed.
        lost: Option<String>,
    },
}

/// Objects of a cluster by the names of their texts, in JSON; `None` where one is gone.
pub type Resources = BTreeMap<Arc<str>, Option<Arc<str>>>;

/// All objects of all texts, each once.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Loaded {
    /// The objects.
    pub objects: Objects,
    /// What is to be said about the texts and their objects.
    pub diagnostics: Vec<Diagnostic>,
    /// What is wrong, and what is in force instead.
    pub wrong: Vec<Wrong>,
}

/// Something that is wrong, and what is in force instead.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wrong {
    /// `Kind namespace/name`, where it is an object that says who it is.
    pub object: Option<Arc<str>>,
    /// The text that it is in.
    pub file: Arc<str>,
    /// What is wrong, with its place.
    pub reason: Arc<str>,
    /// What is in force instead.
    pub standing: Standing,
}

/// What is in force instead of something that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Standing {
    /// Its last good state.
    Held,
    /// Nothing: requests that it governs fail, and access logs that it governs are not written.
    FailsClosed,
    /// Nothing, and no request fails for it.
    NotInForce,
    /// Nothing, and nobody can tell what it governs.
    Unread,
}

impl Standing {
    /// All of them.
    pub const ALL: [Standing; 4] = [Standing::Held, Standing::FailsClosed, Standing::NotInForce, Standing::Unread];

    /// `held`, `fails-closed`, `not-in-force` or `unread`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Standing::Held => "held",
            Standing::FailsClosed => "fails-closed",
            Standing::NotInForce => "not-in-force",
            Standing::Unread => "unread",
        }
    }

    /// What is in force instead of an object of this kind, in words.
    pub fn instead(self, kind: &str) -> &'static str {
        match (self, kind) {
            (Standing::Held, _) => "its last good state",
            (Standing::FailsClosed, "Telemetry") => "nothing, so the access logs that it governs are not written",
            (Standing::FailsClosed, _) => "nothing, so what it governs fails",
            (Standing::NotInForce, "RateLimit" | "Overload" | "Quota" | "EnvoyFilter") => {
                "nothing, and no request fails for it: nothing is limited by it"
            }
            (Standing::NotInForce, "WasmPlugin") => "nothing, and no request fails for it: requests pass without it",
            (Standing::NotInForce, "Telemetry") => {
                "nothing, and no request fails for it: who is not there is told nothing"
            }
            (Standing::NotInForce, _) => "nothing, and no request fails for it",
            (Standing::Unread, _) => "nothing, and nobody can tell what it governs",
        }
    }
}

impl Wrong {
    /// Of what a finding is about.
    pub(crate) fn of_finding(finding: &Diagnostic, standing: Standing) -> Wrong {
        let reason = finding.in_short().into();
        Wrong { object: finding.object.clone(), file: finding.file.clone(), reason, standing }
    }
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut kind = "";
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
            kind = object.split(' ').next().unwrap_or_default();
        }
        write!(f, "in force instead is {}: {}", self.standing.instead(kind), self.reason)
    }
}

impl Store {
    /// An empty store. With `allow_empty`, a directory that has been emptied is taken at its word.
    pub fn new(allow_empty: bool) -> Store {
        Store { allow_empty, ..Store::default() }
    }

    /// One that keeps the last good state of the objects of a configuration directory in another one, and begins with what
    /// that holds. Fails where it is in use, or of another configuration.
    pub fn with_state(allow_empty: bool, dir: &Path, config: Option<&Path>) -> io::Result<Store> {
        let (state, good) = State::open(dir, config)?;
        Ok(Store { good, state: Some(state), ..Store::new(allow_empty) })
    }

    /// Leaves the state directory to another server; from here on nothing is kept.
    pub fn leave_state(&mut self) {
        self.state = None;
    }

    /// The keys of issuers that an earlier process fetched.
    pub fn kept_keys(&self) -> Option<Vec<u8>> {
        self.state.as_ref()?.read_keys()
    }

    /// Keeps fetched keys beside the last good state.
    pub fn keep_keys(&self, bytes: &[u8]) -> io::Result<()> {
        self.state.as_ref().map_or(Ok(()), |state| state.write_keys(bytes))
    }

    /// Takes in what a place says that it holds. Returns whether anything is different.
    pub fn take(&mut self, update: Update) -> bool {
        match update {
            Update::Directory(scan) => self.apply(scan),
            Update::Resources { changed, .. } => self.take_resources(changed),
        }
    }

    /// Takes in objects of a cluster, by the names of their texts; those without a text are gone.
    fn take_resources(&mut self, resources: Resources) -> bool {
        let mut gone = HashSet::new();
        let mut changed = false;
        for (name, content) in resources {
            match content {
                Some(content) => changed |= self.read(name, Ok(content)),
                None => drop(gone.insert(name)),
            }
        }
        let before = self.texts.len();
        self.texts.retain(|name, _| !gone.contains(name));
        changed |= self.texts.len() != before;
        self.good.retain(|_, good| !gone.contains(&good.file));
        if changed {
            self.settle();
        }
        changed
    }

    /// What would be in force, and what there would be to say, with this text of an object of a cluster in the place of what is
    /// known of it.
    pub fn with_resource(&self, name: &Arc<str>, text: Arc<str>) -> Loaded {
        let mut trial = Store { texts: self.texts.clone(), good: self.good.clone(), ..Store::default() };
        trial.texts.remove(name);
        trial.good.retain(|_, good| good.file != *name);
        trial.take_resources(BTreeMap::from([(name.clone(), Some(text))]));
        trial.loaded()
    }

    /// Whether this is what a text of this name says.
    pub fn holds(&self, name: &str, text: &Arc<str>) -> bool {
        self.texts.get(name).is_some_and(|known| matches!(&known.seen, Some(Ok(seen)) if seen == text))
    }

    /// Takes in what a directory holds now. Returns whether anything is different.
    pub fn apply(&mut self, scan: io::Result<Scan>) -> bool {
        let scan = match scan {
            Ok(scan) => scan,
            Err(error) => {
                let message = format!("the configuration directory cannot be read: {error}");
                return self.raise(message);
            }
        };
        // At the start, no text is known yet of what the kept state holds.
        let of_directory =
            |file: &Arc<str>| !is_resource(file) && self.texts.get(file).is_none_or(|text| !text.is_handed_in);
        let held: BTreeSet<Arc<str>> =
            self.good.values().map(|good| good.file.clone()).filter(|file| of_directory(file)).collect();
        // The mesh's settings may be elsewhere.
        let is_empty = scan.files.keys().all(|name| file::is_mesh_file(name)) && !self.allow_empty;
        if is_empty && !held.is_empty() {
            let instead = if self.state.is_some() { " with an empty state directory" } else { "" };
            let changed = self.keep(held);
            return self.raise(format!("every configuration file is gone (if that is meant, restart{instead})"))
                || changed;
        }
        let mut notes = scan.diagnostics;
        if is_empty {
            let message = "there is no configuration file: nothing is configured";
            notes.push(Diagnostic::of_file("", Severity::Warning, Code::File, message));
        }
        let mut changed = self.alarm.take().is_some() || self.notes != notes;
        self.notes = notes;
        let before = self.texts.len();
        self.texts.retain(|name, text| text.is_handed_in || is_resource(name) || scan.files.contains_key(name));
        changed |= self.texts.len() != before;
        for (name, text) in scan.files {
            if !self.texts.get(&name).is_some_and(|text| text.is_handed_in) {
                changed |= self.read(name, text);
            }
        }
        self.has_looked = true;
        if changed {
            self.settle();
        }
        changed
    }

    /// Takes in a text that is no file of the directory; one of the same name there is not read any more. One that is
    /// wrong anywhere changes nothing. Returns whether anything is different, and what is wrong with the text if it is.
    pub fn set_text(&mut self, name: &str, content: &str) -> (bool, Vec<Diagnostic>) {
        let name: Arc<str> = printable(name).into();
        let text = self.texts.entry(name.clone()).or_default();
        text.is_handed_in = true;
        let seen = Some(Ok(content.into()));
        let changed = text.seen != seen;
        if changed {
            text.seen = seen;
            let parsed = file::read(Source { name: name.clone(), text: content.into() });
            if parsed.rejected {
                text.refused.clone_from(&parsed.diagnostics);
                text.diagnostics = parsed.diagnostics;
                text.diagnostics.extend(say_kept(&name, text.items.len(), ""));
            } else {
                let ParsedFile { items, pods, diagnostics, .. } = parsed;
                *text = Text { items, pods, diagnostics, ..Text::of(Ok(content.into())) };
                text.is_handed_in = true;
            }
        }
        let refused = text.refused.clone();
        if changed {
            self.settle();
        }
        (changed, refused)
    }

    /// Forgets a text. Returns whether there was one.
    pub fn remove_text(&mut self, name: &str) -> bool {
        let removed = self.texts.remove(name).is_some();
        if removed {
            // Nobody need guess whether it is gone.
            self.good.retain(|_, good| *good.file != *name);
            self.settle();
        }
        removed
    }

    /// Whether the directory is gone, or suddenly empty, and what it held stays.
    pub fn is_held(&self) -> bool {
        self.alarm.is_some()
    }

    /// Everything that is in force, and what is wrong.
    pub fn loaded(&self) -> Loaded {
        let mut loaded = self.loaded.clone();
        let alarms = self.alarm.iter().chain(&self.lost_settings).chain(&self.notes);
        let of_state = self.state.iter().flat_map(State::diagnostics);
        loaded.diagnostics.splice(0..0, alarms.chain(of_state).cloned());
        loaded
    }

    /// Texts of which there is nothing to say, because there is nothing in them.
    pub fn silent_texts(&self) -> impl Iterator<Item = &Arc<str>> {
        let is_silent = |text: &Text| text.items.is_empty() && text.diagnostics.is_empty() && !text.keeps;
        self.texts.iter().filter(move |(_, text)| is_silent(text)).map(|(name, _)| name)
    }

    /// Puts what the kept state holds of these files in force, where nothing is known of them yet. Returns whether there
    /// was any such file.
    fn keep(&mut self, files: BTreeSet<Arc<str>>) -> bool {
        let before = self.texts.len();
        for file in files {
            self.texts.entry(file).or_insert_with(|| Text { keeps: true, ..Text::default() });
        }
        let changed = self.texts.len() != before;
        if changed {
            self.settle();
        }
        changed
    }

    /// Reads a file of the directory. Returns whether it is another one than before.
    fn read(&mut self, name: Arc<str>, content: Result<Arc<str>, Unreadable>) -> bool {
        if let Some(known) = self.texts.get_mut(&name)
            && known.seen.as_ref() == Some(&content)
        {
            known.doubted = None;
            return false;
        }
        // What is wrong in it so far, and fails closed.
        let mut failing = self.texts.get(&name).map(Text::failing).unwrap_or_default();
        let source = |text: &Arc<str>| Source { name: name.clone(), text: text.clone() };
        let (parsed, is_cut_off) = match &content {
            Err(Unreadable { why, remains }) => {
                let what = format!("cannot be read: {why}");
                let finding = Diagnostic::of_file(name.clone(), Severity::Error, Code::File, what);
                let mut parsed = file::read_remains(source(remains), finding);
                // What was in force goes on, and at a start nothing was.
                parsed.items.retain(|item| !self.has_looked || is_object(item));
                (parsed, true)
            }
            // Nobody sees half of one.
            Ok(text) if is_resource(&name) => (file::read(source(text)), false),
            Ok(text) => {
                failing.retain(is_object);
                let parsed = file::read(source(text));
                let holds_something = self.good.values().any(|good| good.file == name);
                let is_emptied = parsed.items.is_empty() && !holds_something && !failing.is_empty();
                let loses_guard = parsed.unread.is_empty() && self.loses_guard(&name, &parsed.items);
                if let Some(known) = self.texts.get_mut(&name)
                    && (loses_guard
                        || (!parsed.rejected
                            && (is_emptied || (!parsed.items.is_empty() && known.is_cut_off_in(text)))))
                    && known.doubted.as_ref() != Some(text)
                {
                    known.doubted = Some(text.clone());
                    return false;
                }
                // Editors empty a file before they write it, or write its first lines alone: what it said goes away with
                // the file only.
                let is_cut_off = parsed.items.is_empty() && holds_something;
                (parsed, is_cut_off)
            }
        };
        let ParsedFile { mut items, pods, unread, diagnostics, .. } = parsed;
        if !unread.is_empty() {
            let written: HashSet<ObjectKey> = items.iter().map(|item| item.meta().key()).collect();
            let is_left = |key: ObjectKey| !written.contains(&key) && !self.good.contains_key(&key);
            items.extend(failing.into_iter().filter(|item| is_left(item.meta().key())));
        }
        let keeps = is_cut_off || !unread.is_empty();
        let text = Text { items, pods, keeps, unread, diagnostics, ..Text::of(content) };
        self.texts.insert(name, text);
        true
    }

    /// Whether one of the objects that guard workloads is not in a text any more. Half a file may end where an object does.
    fn loses_guard(&self, name: &str, now: &[Item]) -> bool {
        let known = self.texts.get(name).into_iter().flat_map(|text| &text.items);
        let good = self.good.values().filter(|good| *good.file == *name).map(|good| &good.item);
        let mut guards = known.chain(good).filter(|item| item.guards() && !item.meta().name.is_empty());
        guards.any(|guard| now.iter().all(|item| item.meta().key() != guard.meta().key()))
    }

    /// Decides what is in force. Of an object that is written twice the last one counts, in the order of the files'
    /// names, as if the files had been applied one after the other; those of a cluster come by theirs.
    fn settle(&mut self) {
        let mut found: Vec<Diagnostic> = self.texts.values().flat_map(|text| &text.diagnostics).cloned().collect();
        let written = last_of_each(&self.texts, &mut found);
        let mut loaded = Loaded::default();
        let mut good = BTreeMap::new();
        let kept = self.kept(&written);
        for (file, item) in written {
            let key = item.meta().key();
            if let Some(later) = kept.get(&key) {
                found.push(hidden(item.meta(), &later.file));
                continue;
            }
            let Item::Refused(refused) = &item else {
                loaded.objects.push(item.clone());
                good.insert(key, Good { file, item });
                continue;
            };
            let mut say = |standing| {
                let (object, reason) = (refused.is_object().then(|| refused.id()), refused.reason.clone());
                loaded.wrong.push(Wrong { object, file: file.clone(), reason, standing });
            };
            if let Some(earlier) = self.good.get(&key) {
                say(Standing::Held);
                let (item, message) = held(&earlier.item, refused);
                let finding = Diagnostic::at(&refused.meta.origin, Severity::Warning, Code::File, message);
                found.push(finding.object(refused.id()));
                loaded.objects.push(item.clone());
                good.insert(key, Good { file, item });
            } else if !refused.is_identified && is_among(refused, &file, &kept) {
                // It is one of those that are kept, most likely.
                say(Standing::Held);
            } else {
                say(match refused.meta.kind {
                    // What was in force of the mesh's settings stays, be it that nothing was said.
                    ObjectKind::MeshConfig => Standing::Held,
                    ObjectKind::Secret => Standing::FailsClosed,
                    _ if refused.is_whole
                        && refused.governs == Governs::Nothing
                        && refused.at_gateways.hosts.is_empty()
                        && refused.closes.is_none() =>
                    {
                        Standing::NotInForce
                    }
                    _ if refused.is_whole => Standing::FailsClosed,
                    _ => Standing::Unread,
                });
                loaded.objects.push(item);
            }
        }
        // Of texts that are gone, or do not have it any more.
        let mut moved: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
        for good in kept.values().filter(|good| !self.keeps(&good.file)) {
            *moved.entry(&good.file).or_default() += 1;
        }
        for (name, count) in moved {
            found.extend(say_kept(name, count, ", because it may be in a file that cannot be read"));
        }
        let mut told: HashSet<(Arc<str>, Arc<str>)> =
            loaded.wrong.iter().map(|wrong| (wrong.file.clone(), wrong.reason.clone())).collect();
        for (name, text) in &self.texts {
            let held = kept.values().filter(|good| good.file == *name).count();
            if text.keeps {
                found.extend(say_kept(name, held, ""));
            }
            let standing = if held > 0 { Standing::Held } else { Standing::Unread };
            let unread = text.unread.iter().map(|finding| Wrong::of_finding(finding, standing));
            let unread: Vec<Wrong> =
                unread.filter(|wrong| told.insert((wrong.file.clone(), wrong.reason.clone()))).collect();
            loaded.wrong.extend(unread);
            let refused = text.refused.iter().filter(|finding| finding.rejects_object());
            loaded.wrong.extend(refused.map(|finding| Wrong::of_finding(finding, Standing::Held)));
        }
        for (key, kept) in kept {
            loaded.objects.push(kept.item.clone());
            good.insert(key, kept);
        }
        loaded.objects.pods = self.texts.values().flat_map(|text| &text.pods).cloned().collect();
        loaded.diagnostics = found;
        self.loaded = loaded;
        let settings = |good: &BTreeMap<ObjectKey, Good>| {
            good.values().find(|good| good.item.meta().kind == ObjectKind::MeshConfig).map(|good| good.file.clone())
        };
        match (settings(&self.good), settings(&good)) {
            (_, Some(_)) => self.lost_settings = None,
            (Some(file), None) => {
                let message = "the settings of the mesh that it held are gone: the defaults are in force, or come into force with \
                               the next start (trust domain, root namespace)";
                self.lost_settings = Some(Diagnostic::of_file(file, Severity::Warning, Code::File, message));
            }
            (None, None) => {}
        }
        self.good = good;
        if let Some(state) = &mut self.state {
            let handed_in = |good: &&Good| self.texts.get(&good.file).is_some_and(|text| text.is_handed_in);
            // Keys of others are kept where they are written, and nowhere else.
            let is_kept = |good: &&Good| !handed_in(good) && !matches!(good.item, Item::Secret(_));
            state.write(self.good.values().filter(is_kept));
        }
    }

    /// What is not written any more, and stays because nobody can tell what its text holds, or whether it is not in one
    /// that cannot be read. What is written in an earlier text does not count as long as that is so: it did not before.
    fn kept(&self, written: &[(Arc<str>, Item)]) -> BTreeMap<ObjectKey, Good> {
        let written: BTreeMap<ObjectKey, &Arc<str>> =
            written.iter().map(|(file, item)| (item.meta().key(), file)).collect();
        let unread = |(name, text): &(&Arc<str>, &Text)| !text.unread.is_empty() && !is_resource(name);
        let last_unread = self.texts.iter().rfind(unread).map(|(name, _)| name);
        let is_hidden = |key: &ObjectKey, good: &Good| {
            let written = written.get(key).copied();
            let handed_in = is_resource(&good.file) || self.texts.get(&good.file).is_some_and(|text| text.is_handed_in);
            written.is_none_or(|file| *file < good.file)
                && (self.keeps(&good.file) || (!handed_in && last_unread.is_some_and(|name| written < Some(name))))
        };
        let kept = self.good.iter().filter(|(key, good)| is_hidden(key, good));
        kept.map(|(key, good)| (key.clone(), good.clone())).collect()
    }

    fn keeps(&self, file: &str) -> bool {
        self.texts.get(file).is_some_and(|text| text.keeps)
    }

    fn raise(&mut self, what: String) -> bool {
        let message = format!("{what}; the last good state stays");
        let alarm = Diagnostic::of_file("", Severity::Error, Code::Vanished, message);
        let changed = self.alarm.as_ref() != Some(&alarm);
        self.alarm = Some(alarm);
        changed
    }
}

impl Text {
    fn of(content: Result<Arc<str>, Unreadable>) -> Text {
        Text { seen: Some(content), ..Text::default() }
    }

    /// What of it is wrong.
    fn failing(&self) -> Vec<Item> {
        self.items.iter().filter(|item| matches!(item, Item::Refused(_))).cloned().collect()
    }

    /// Whether what it is now lacks the newline at its end that it had, or is the beginning of what it was. Half of an object may be
    /// a good one that says less: it is believed when the next look finds it unchanged.
    fn is_cut_off_in(&self, now: &str) -> bool {
        let Some(Ok(before)) = &self.seen else { return false };
        !now.is_empty() && ((before.ends_with('\n') && !now.ends_with('\n')) || before.starts_with(now))
    }
}

/// Whether it is some object, and not a file that may hold any.
fn is_object(item: &Item) -> bool {
    !matches!(item, Item::Refused(refused) if !refused.is_object())
}

/// What stays in force of the last good state of an object that is wrong now. What may be referred to grows with nobody's
/// mistake, nor does it stay where the text takes it away.
fn held(good: &Item, wrong: &Refused) -> (Item, &'static str) {
    match good {
        Item::ReferenceGrant(grant) => {
            let (meta, spec) = (grant.meta.clone(), grant.spec.and(&wrong.grants));
            let message = "of its last good state, what is granted here as well stays in force";
            (Item::ReferenceGrant(Arc::new(Object { meta, spec })), message)
        }
        other => (other.clone(), "its last good state stays in force"),
    }
}

fn say_kept(name: &Arc<str>, count: usize, why: &str) -> Option<Diagnostic> {
    let message = match count {
        0 => return None,
        1 => format!("the object that it held last stays in force{why}"),
        count => format!("the {count} objects that it held last stay in force{why}"),
    };
    Some(Diagnostic::of_file(name.clone(), Severity::Warning, Code::File, message))
}

fn last_of_each(texts: &BTreeMap<Arc<str>, Text>, found: &mut Vec<Diagnostic>) -> Vec<(Arc<str>, Item)> {
    let mut written: Vec<Option<(Arc<str>, Item)>> = Vec::new();
    let mut by_key: BTreeMap<ObjectKey, usize> = BTreeMap::new();
    for (name, text) in texts {
        for item in &text.items {
            let meta = item.meta();
            // Of those without a name nobody can tell whether they are the same.
            let earlier = (!meta.name.is_empty()).then(|| by_key.insert(meta.key(), written.len())).flatten();
            if let Some((_, earlier)) = earlier.and_then(|earlier| written.get_mut(earlier)?.take()) {
                found.push(duplicate(earlier.meta(), meta));
            }
            written.push(Some((name.clone(), item.clone())));
        }
    }
    written.into_iter().flatten().collect()
}

fn duplicate(earlier: &Meta, later: &Meta) -> Diagnostic {
    let message = format!("written again in {}, which is the one that counts", later.origin);
    Diagnostic::at(&earlier.origin, Severity::Warning, Code::Duplicate, message).object(earlier.id())
}

/// Whether a wrong object may be one of those that are kept. One that secures calls to a host of which none of them speaks is another
/// one.
fn is_among(refused: &Refused, file: &str, kept: &BTreeMap<ObjectKey, Good>) -> bool {
    let like = || kept.values().filter(|good| is_like(good, refused, file));
    let secures = matches!(refused.meta.kind, ObjectKind::BackendTlsPolicy | ObjectKind::DestinationRule);
    match &refused.governs {
        Governs::Hosts { hosts, .. } if secures => hosts.iter().all(|host| {
            like().any(|good| match &good.item {
                Item::BackendTlsPolicy(policy) => {
                    let mut targets = policy.spec.target_refs.iter();
                    policy.meta.namespace == refused.meta.namespace
                        && targets.any(|target| *target.name.value == **host)
                }
                Item::DestinationRule(rule) => rule.spec.host.trim().eq_ignore_ascii_case(host),
                _ => false,
            })
        }),
        _ => like().next().is_some(),
    }
}

/// Whether what is kept may be this one.
fn is_like(good: &Good, refused: &Refused, file: &str) -> bool {
    *good.file == *file && (good.item.meta().kind == refused.meta.kind || !refused.is_object())
}

fn hidden(earlier: &Meta, file: &str) -> Diagnostic {
    let message = format!("not in force: what {file} said of it last counts, and nobody can tell what it says now");
    Diagnostic::at(&earlier.origin, Severity::Warning, Code::Duplicate, message).object(earlier.id())
}

#[cfg(test)]
mod tests;

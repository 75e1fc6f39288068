//! The Dockerfile, read: that what it copies is there and enough, and that what it makes is what the manifests run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::tests::defaults;
use super::{Webhook, manifests};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The words of each instruction, by stage.
fn stages() -> Vec<Vec<Vec<String>>> {
    let mut stages = Vec::new();
    for line in read("Dockerfile").lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        if words[0] == "FROM" {
            stages.push(Vec::new());
        }
        stages.last_mut().expect("it begins with FROM").push(words);
    }
    stages
}

fn of<'s>(stage: &'s [Vec<String>], instruction: &str) -> Vec<Vec<&'s str>> {
    let all = stage.iter().filter(|words| words[0] == instruction);
    all.map(|words| words[1..].iter().map(String::as_str).collect()).collect()
}

/// Every file that the compiler reads of this crate and those below it, and of the workspace.
fn sources() -> BTreeSet<PathBuf> {
    fn walk(dir: &Path, found: &mut BTreeSet<PathBuf>) {
        for entry in std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path()) {
            match entry.is_dir() {
                true => walk(&entry, found),
                false => _ = found.insert(entry),
            }
        }
    }
    let (root, mut found) = (root().canonicalize().expect("a root"), BTreeSet::new());
    let manifest = read("Cargo.toml");
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).expect("members");
    for member in members.split('"').skip(1).step_by(2) {
        found.insert(root.join(member).join("Cargo.toml"));
    }
    found.extend(["Cargo.toml", "Cargo.lock"].map(|file| root.join(file)));
    for krate in ["mesh-core", "mesh-control"] {
        walk(&root.join(krate).join("src"), &mut found);
    }
    // What they include lies beside them, or elsewhere.
    for file in found.clone().iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let text = std::fs::read_to_string(file).expect("a source");
        for include in text.split("include_str!(\"").skip(1).chain(text.split("include_bytes!(\"").skip(1)) {
            let name = include.split('"').next().unwrap_or_default();
            let included = file.parent().unwrap_or(file).join(name);
            if let Ok(included) = included.canonicalize() {
                found.insert(included);
            }
        }
    }
    found.into_iter().map(|file| file.strip_prefix(&root).map(Path::to_owned).expect("in the workspace")).collect()
}

#[test]
fn what_the_image_is_built_from_is_there_and_all_of_it_is_copied() {
    let [build, image] = &stages()[..] else { panic!("two stages") };
    let copied: Vec<&str> = of(build, "COPY").iter().flat_map(|words| words[..words.len() - 1].to_vec()).collect();
    assert!(!copied.is_empty() && copied.iter().all(|path| root().join(path).exists()), "{copied:?}");
    let ignored = read(".dockerignore");
    let ignored: Vec<&str> = ignored.lines().filter(|line| !line.trim().is_empty()).collect();
    assert!(ignored.iter().all(|line| !line.contains(['*', '?', '[', '!'])), "a pattern that this test cannot read");
    let sources = sources();
    assert!(sources.len() > 200, "{}", sources.len());
    for source in sources {
        assert!(copied.iter().any(|path| *path == "." || source.starts_with(path)), "{source:?} is not copied");
        assert!(!ignored.iter().any(|line| source.starts_with(line)), "{source:?} is left out by .dockerignore");
    }

    // What the first stage makes is what the second one takes, and runs.
    let run = of(build, "RUN").concat().join(" ");
    let option = |name: &str| run.split(name).nth(1).and_then(|rest| rest.split_whitespace().next());
    let (profile, bin) = (option("--profile ").expect("a profile"), option("--bin ").expect("a program"));
    assert!(run.contains("--locked") && read("Cargo.toml").contains(&format!("[profile.{profile}]")));
    let [copy] = &of(image, "COPY")[..] else { panic!("one file") };
    assert_eq!(copy[..2], ["--from=build", &format!("/src/target/{profile}/{bin}")]);
    assert_eq!(of(image, "ENTRYPOINT"), [[format!("[\"{}\"]", copy[2])]]);
}

#[test]
fn the_image_is_what_the_manifests_run() {
    let stages = stages();
    let image = stages.last().expect("a stage");
    let webhook = Webhook { ca: "CA".to_owned(), clients: None };
    let text = manifests(&defaults(), Some(&webhook));
    let user = of(image, "USER").concat().concat();
    let [user, group] = user.split(':').collect::<Vec<_>>()[..] else { panic!("{user}") };
    assert!(text.contains(&format!("runAsUser: {user}\n")) && text.contains(&format!("runAsGroup: {group}\n")));
    let exposed: BTreeSet<&str> = of(image, "EXPOSE").concat().into_iter().collect();
    let ports = text.split("containerPort: ").skip(1).filter_map(|rest| rest.split('}').next());
    assert_eq!(ports.collect::<BTreeSet<_>>(), exposed);
    // No shell is there to be run.
    assert!(of(image, "RUN").is_empty() && !text.contains("command:"));
}

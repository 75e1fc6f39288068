//! Every input that was saved for a fuzzer (`fuzz/corpus/`), through the function that it was saved for.

#[expect(unreachable_pub, reason = "for the fuzzers it is a crate")]
#[path = "../../fuzz/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned()).collect()
}

#[test]
fn every_saved_input_passes_its_parser() {
    for (name, target) in targets::TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(root().join("corpus").join(name)).expect("a directory") {
            let path = entry.expect("an entry").path();
            println!("{}", path.display());
            target(&fs::read(&path).expect("readable"));
            inputs += 1;
        }
        assert!(inputs >= 3, "{name} has {inputs} inputs");
    }
}

/// A parser that no fuzzer calls, or a directory that nobody reads, would go unseen.
#[test]
fn every_parser_has_a_fuzzer_and_inputs() {
    let expected: BTreeSet<_> = targets::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&root().join("fuzz_targets")), expected);
    assert_eq!(names(&root().join("corpus")), expected);
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("readable");
    for name in &expected {
        assert!(manifest.contains(&format!("[[bin]]\nname = \"{name}\"")), "fuzz/Cargo.toml has no {name}");
    }
}

/// What is compared with "was taken" must once be taken.
#[test]
fn the_saved_token_is_good_and_nothing_near_it() {
    let token = include_bytes!("../../fuzz/jwt/token");
    assert!(targets::is_good_token(token));
    assert!(!targets::is_good_token(&token[1..]));
}

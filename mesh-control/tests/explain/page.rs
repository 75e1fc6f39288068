//! The worked examples of `docs/explain.md`: files, commands, and what they print.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::run;

const PAGE: &str = include_str!("../../../docs/explain.md");

/// The blocks of a part of the page: their language, and their text.
fn blocks(part: &str) -> impl Iterator<Item = (&str, &str)> {
    part.split("\n```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'))
}

/// Puts a block into the file that its first line names.
fn write(block: &str, at: &Path) {
    let (name, rest) = block.split_once('\n').unwrap_or((block, ""));
    let name = name.strip_prefix("# ").expect("the first line of a file names it");
    let (path, text) = match name.ends_with(".jsonl") {
        true => (at.join(name), rest),
        false => (at.join("mesh").join(name), block),
    };
    fs::create_dir_all(path.parent().expect("a directory")).unwrap();
    fs::write(path, format!("{text}\n")).unwrap();
}

#[test]
fn the_examples_of_the_page_print_what_it_says() {
    let mut parts = PAGE.split("\n## ");
    let intro = parts.next().expect("an introduction");
    let mut seen = BTreeMap::new();
    for part in parts {
        let title = part.lines().next().unwrap_or_default();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mesh")).unwrap();
        blocks(intro).for_each(|(_, block)| write(block, dir.path()));
        for (language, block) in blocks(part) {
            if language != "console" {
                write(block, dir.path());
                continue;
            }
            let mut lines = block.lines().peekable();
            while let Some(line) = lines.next() {
                let command = line.strip_prefix("$ mesh-control ").unwrap_or_else(|| panic!("{title}: {line}"));
                let mut expected = String::new();
                while let Some(said) = lines.next_if(|line| !line.starts_with("$ ")) {
                    expected += said;
                    expected.push('\n');
                }
                let output = run(&command.split_whitespace().collect::<Vec<_>>(), dir.path(), "");
                let said = String::from_utf8_lossy(&output.stdout);
                let errors = String::from_utf8_lossy(&output.stderr);
                assert_eq!(said, expected, "{title}: {command}: {errors}");
                *seen.entry(title).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(seen.len(), 12, "{seen:?}");
}

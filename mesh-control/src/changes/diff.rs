//! What is different between two texts, line by line, in the unified form that people and `patch` know.

use std::fmt::Write as _;

/// Lines around a difference that are shown, too.
const AROUND: usize = 3;
/// The most lines of a text that are compared one by one; longer ones are shown as replaced.
const MOST: usize = 4000;

/// The differences; empty where there are none.
pub(super) fn diff(name: &str, before: &str, after: &str) -> String {
    if before == after {
        return String::new();
    }
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let script = script(&old, &new);
    let mut out = format!("--- {name}\n+++ {name}\n");
    let is_change = |at: usize| script.get(at).is_some_and(|line| line.0 != ' ');
    let mut at = 0;
    while at < script.len() {
        let Some(first) = (at..script.len()).find(|at| is_change(*at)) else { break };
        let start = first.saturating_sub(AROUND).max(at);
        let mut end = first;
        let mut last = first;
        while end < script.len() && end <= last + 2 * AROUND {
            if is_change(end) {
                last = end;
            }
            end += 1;
        }
        let end = (last + 1 + AROUND).min(script.len());
        let lines = script.get(start..end).unwrap_or_default();
        let count =
            |sides: [char; 2], lines: &[(char, &str)]| lines.iter().filter(|line| sides.contains(&line.0)).count();
        let before = script.get(..start).unwrap_or_default();
        let place = |sides| (count(sides, before) + usize::from(count(sides, lines) > 0), count(sides, lines));
        let ((from, old), (to, new)) = (place([' ', '-']), place([' ', '+']));
        // Writing to a String cannot fail.
        let _ = writeln!(out, "@@ -{from},{old} +{to},{new} @@");
        for (side, line) in lines {
            let _ = writeln!(out, "{side}{line}");
        }
        at = end;
    }
    out
}

/// All lines: those of both, and those of one side alone. The longest common subsequence.
fn script<'t>(old: &[&'t str], new: &[&'t str]) -> Vec<(char, &'t str)> {
    let replaced = || old.iter().map(|line| ('-', *line)).chain(new.iter().map(|line| ('+', *line))).collect();
    if old.len() > MOST || new.len() > MOST {
        return replaced();
    }
    let width = new.len() + 1;
    let mut longest = vec![0_u32; (old.len() + 1) * width];
    let at = |i: usize, j: usize| i * width + j;
    for (i, left) in old.iter().enumerate().rev() {
        for (j, right) in new.iter().enumerate().rev() {
            let of = |i, j| longest.get(at(i, j)).copied().unwrap_or(0);
            let best = if left == right { of(i + 1, j + 1) + 1 } else { of(i + 1, j).max(of(i, j + 1)) };
            if let Some(place) = longest.get_mut(at(i, j)) {
                *place = best;
            }
        }
    }
    let of = |i, j| longest.get(at(i, j)).copied().unwrap_or(0);
    let (mut i, mut j, mut script) = (0, 0, Vec::new());
    loop {
        match (old.get(i), new.get(j)) {
            (Some(left), Some(right)) if left == right => {
                script.push((' ', *left));
                (i, j) = (i + 1, j + 1);
            }
            (Some(left), right) if right.is_none() || of(i + 1, j) >= of(i, j + 1) => {
                script.push(('-', *left));
                i += 1;
            }
            (_, Some(right)) => {
                script.push(('+', *right));
                j += 1;
            }
            (_, None) => return script,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_shown_with_what_is_around_them() {
        let before: Vec<String> = (1..=20).map(|number| number.to_string()).collect();
        let mut after = before.clone();
        after[1] = "two".to_owned();
        after.remove(17);
        let expected = "--- a\n+++ a\n@@ -1,5 +1,5 @@\n 1\n-2\n+two\n 3\n 4\n 5\n@@ -15,6 +15,5 @@\n 15\n 16\n 17\n-18\n 19\n 20\n";
        assert_eq!(diff("a", &(before.join("\n") + "\n"), &(after.join("\n") + "\n")), expected);
        assert_eq!(diff("a", "", "x\n"), "--- a\n+++ a\n@@ -0,0 +1,1 @@\n+x\n");
        assert_eq!(diff("a", "x\n", ""), "--- a\n+++ a\n@@ -1,1 +0,0 @@\n-x\n");
        assert_eq!(diff("a", "x", "x"), "");
        let long = "x\n".repeat(MOST + 1);
        assert!(diff("a", &long, "y\n").ends_with("-x\n+y\n"));
    }
}

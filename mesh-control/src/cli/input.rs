//! What commands read besides the configuration: files that somebody names, or stdin. Nothing is opened that may never end, and
//! no line is longer than any that makes sense.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// No record and no request is as long.
const LONGEST_LINE: u64 = 1 << 20;

/// The lines of a file, or of stdin for `-`, each with its number; blank ones are left out.
pub(super) struct Lines {
    name: String,
    reader: Box<dyn BufRead>,
    number: usize,
}

impl Lines {
    /// Those of a regular file. What else has a name may have no end, or wait for its writer for ever.
    pub(super) fn of(path: &Path) -> anyhow::Result<Lines> {
        if path.as_os_str() == "-" {
            return Ok(Lines::read("stdin".to_owned(), BufReader::new(io::stdin())));
        }
        let name = path.display().to_string();
        let metadata = fs::metadata(path).with_context(|| format!("cannot read {name}"))?;
        if !metadata.is_file() {
            bail!("cannot read {name}: not a regular file; what comes over a pipe is read from stdin, by the name -");
        }
        let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
        Ok(Lines::read(name, BufReader::new(file)))
    }

    /// Those of a text.
    pub(super) fn read(name: String, reader: impl BufRead + 'static) -> Lines {
        Lines { name, reader: Box::new(reader), number: 0 }
    }

    /// The next line, and where it stands. One that is too long is an error.
    pub(super) fn next_line(&mut self) -> anyhow::Result<Option<(String, Vec<u8>)>> {
        match self.next_of_any_length()? {
            Some((place, None)) => bail!("{place}: {}", too_long()),
            Some((place, Some(line))) => Ok(Some((place, line))),
            None => Ok(None),
        }
    }

    /// The same; of a line that is too long there is nothing, and those behind it are there.
    pub(super) fn next_of_any_length(&mut self) -> anyhow::Result<Option<(String, Option<Vec<u8>>)>> {
        loop {
            let mut line = Vec::new();
            let length = self.read_part(&mut line)?;
            if length == 0 {
                return Ok(None);
            }
            self.number += 1;
            let place = format!("{}:{}", self.name, self.number);
            if length == LONGEST_LINE && !line.ends_with(b"\n") {
                while !line.ends_with(b"\n") {
                    line.clear();
                    if self.read_part(&mut line)? == 0 {
                        break;
                    }
                }
                return Ok(Some((place, None)));
            }
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some((place, Some(line))));
            }
        }
    }

    fn read_part(&mut self, into: &mut Vec<u8>) -> anyhow::Result<u64> {
        let mut part = self.reader.by_ref().take(LONGEST_LINE);
        let length = part.read_until(b'\n', into).with_context(|| format!("cannot read {}", self.name))?;
        Ok(length as u64)
    }
}

/// What is wrong with a line that is too long.
pub(super) fn too_long() -> String {
    format!("a line of more than {} MiB", LONGEST_LINE >> 20)
}

/// A line as what it says: an object. A list would be read by the places of its items.
pub(super) fn object<T: DeserializeOwned>(line: &[u8]) -> anyhow::Result<T> {
    if !line.trim_ascii_start().starts_with(b"{") {
        bail!("it is no JSON object");
    }
    // It is one line, which whoever reads it counts himself.
    serde_json::from_slice(line).map_err(|error| {
        let (text, column) = (error.to_string(), error.column());
        match text.strip_suffix(&format!(" at line {} column {column}", error.line())) {
            Some(what) => anyhow::anyhow!("{what} at column {column}"),
            None => error.into(),
        }
    })
}

/// The values of a header: a text, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Values {
    One(String),
    Several(Vec<String>),
}

impl Values {
    pub(super) fn as_slice(&self) -> &[String] {
        match self {
            Values::One(value) => std::slice::from_ref(value),
            Values::Several(values) => values,
        }
    }
}

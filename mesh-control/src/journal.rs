//! Records on disk: a file of lines of JSON, each of which adds to those before. It is written anew when it has grown to a multiple of
//! what it says, so that there is the old file or the new one, whatever happens.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// So many lines, and so many bytes, are no reason to write the file anew.
const FEW: usize = 10_000;
const SMALL: usize = 16 << 20;
/// A file that is so many times as large as when it was new is.
const GROWTH: usize = 4;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    size: Size,
    /// When it was written anew.
    new: Size,
    /// Whether its last line may be half of one.
    is_torn: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Size {
    lines: usize,
    bytes: usize,
}

impl Journal {
    /// The journal in a file of a directory, and what it holds.
    pub(crate) fn open<R: DeserializeOwned>(dir: &Path, file: &str) -> io::Result<(Journal, Vec<R>)> {
        let path = dir.join(file);
        let (records, unread) = read(&path)?;
        if unread > 0 {
            // It will be written anew: what it was stays for whoever wants to look.
            let kept = path.with_extension("unread");
            fs::copy(&path, &kept)?;
            let (path, kept) = (path.display(), kept.display());
            tracing::error!(unread, "{path}: lines that cannot be read are left out; the file as it was is in {kept}");
        }
        let file = options().append(true).create(true).open(&path)?;
        let size = Size { lines: records.len(), bytes: file.metadata()?.len().try_into().unwrap_or(usize::MAX) };
        Ok((Journal { path, file, size, new: Size::default(), is_torn: unread > 0 }, records))
    }

    /// Writes them behind what it holds.
    pub(crate) fn append(&mut self, records: impl Iterator<Item = impl Serialize>) -> io::Result<()> {
        let mut text = if self.is_torn { "\n".to_owned() } else { String::new() };
        let mut lines = 0;
        for record in records {
            text += &line(&record);
            lines += 1;
        }
        self.is_torn = true;
        self.file.write_all(text.as_bytes())?;
        self.is_torn = false;
        self.size.lines += lines;
        self.size.bytes = self.size.bytes.saturating_add(text.len());
        Ok(())
    }

    /// Whether it has grown to a multiple of what it was when it was written anew.
    pub(crate) fn is_long(&self) -> bool {
        let Size { lines, bytes } = self.size;
        lines > FEW.max(GROWTH * self.new.lines) || bytes > SMALL.max(GROWTH.saturating_mul(self.new.bytes))
    }

    /// Puts these in the place of all that it holds.
    pub(crate) fn rewrite(&mut self, records: &[impl Serialize]) -> io::Result<()> {
        let new = self.path.with_extension("new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A new one: what is there may be a link to something else.
        let mut out = BufWriter::new(options().append(true).create_new(true).open(&new)?);
        let mut size = Size { lines: records.len(), bytes: 0 };
        for record in records {
            let line = line(record);
            size.bytes += line.len();
            out.write_all(line.as_bytes())?;
        }
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        if let Some(dir) = self.path.parent() {
            // Else the old file might be back after a power failure.
            File::open(dir)?.sync_all()?;
        }
        (self.file, self.size, self.new, self.is_torn) = (file, size, size, false);
        Ok(())
    }
}

fn line(record: &impl Serialize) -> String {
    let mut line = serde_json::to_string(record).unwrap_or_default();
    line.push('\n');
    line
}

/// Who calls whom and who has used how much is nobody else's business.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// The records of a file, and how many lines are none.
fn read<R: DeserializeOwned>(path: &Path) -> io::Result<(Vec<R>, usize)> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        file => file?,
    };
    let (mut records, mut unread) = (Vec::new(), 0);
    for line in BufReader::new(file).split(b'\n') {
        match serde_json::from_slice(&line?) {
            Ok(record) => records.push(record),
            Err(_) => unread += 1,
        }
    }
    Ok((records, unread))
}

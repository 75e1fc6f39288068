//! The program that is beside the mesh: how it begins, what it is told, and its end.
//!
//! It is the first of a process group of its own, so that it can be told to end together with whatever it started, and a terminal
//! tells this process alone. It ends with this process, however that ends: the group is killed when a [`Program`] is dropped, and
//! where this process is killed, the kernel kills the program (Linux). What it has started itself is left then.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

/// How this program is told to become another one: `EXEC_UNDER parent program arguments...`.
const EXEC_UNDER: &str = "--exec-under";

/// What only this process is to know: its token is used up by the first certificate, and the program is no second client of xDS.
const OURS: [&str; 3] = ["MESH_CONTROL_TOKEN", "GRPC_XDS_BOOTSTRAP", "GRPC_XDS_BOOTSTRAP_CONFIG"];

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    group: Option<Pid>,
}

impl Program {
    /// Starts it with these variables besides those of this process.
    ///
    /// It has to be called on the thread that ends last: the kernel takes its end for that of the process.
    ///
    /// # Errors
    /// If no process can be had. A command that cannot be run is told by the exit code, as by a shell: 127 or 126.
    pub(crate) fn start(command: &[OsString], variables: &[(&str, String)]) -> io::Result<Program> {
        let mut start = Command::new(std::env::current_exe()?);
        start.arg(EXEC_UNDER).arg(std::process::id().to_string()).args(command);
        OURS.iter().for_each(|name| _ = start.env_remove(name));
        start.envs(variables.iter().map(|(name, value)| (name, value))).process_group(0).kill_on_drop(true);
        // A group in the background that reads from a terminal is stopped.
        if io::stdin().is_terminal() {
            start.stdin(Stdio::null());
        }
        let child = start.spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(Program { child, group })
    }

    /// Waits for its end, and ends what it left behind. The exit code is the one that a shell would have. Cancel safe.
    pub(crate) async fn ended(&mut self) -> io::Result<u8> {
        let status = self.child.wait().await?;
        self.kill();
        // Nobody is told by this number any more: it may be another's soon.
        self.group = None;
        Ok(exit_code(status))
    }

    /// Tells it and whatever it started.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // Whoever is gone need not be told.
            _ = kill_process_group(group, signal);
        }
    }

    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The exit code of a program as a shell tells it: 128 and the signal where that ended it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    // What the system calls a code has eight bits.
    u8::try_from(code & 0xff).unwrap_or(1)
}

/// Becomes the program, where these arguments are those of the process that [`Program::start`] made. Returns only if they are
/// not, or where it fails: the exit code.
pub(crate) fn become_program(mut arguments: impl Iterator<Item = OsString>) -> Option<u8> {
    arguments.next().filter(|first| first == EXEC_UNDER)?;
    let parent = arguments.next().and_then(|parent| parent.to_str()?.parse().ok());
    let (Some(parent), Some(program)) = (parent, arguments.next()) else { return Some(125) };
    if let Err(error) = end_with(parent) {
        eprintln!("mesh-sidecar: {error}");
        return Some(125);
    }
    let error = std::process::Command::new(&program).args(arguments).exec();
    eprintln!("mesh-sidecar: {}: {error}", program.display());
    Some(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

/// The kernel kills this process when its parent ends, and whatever it becomes.
#[cfg(target_os = "linux")]
fn end_with(parent: i32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before.
    match rustix::process::getppid().map(Pid::as_raw_pid) {
        Some(now) if now == parent => Ok(()),
        _ => Err(io::Error::other("the process that started this one is gone")),
    }
}

#[cfg(not(target_os = "linux"))]
fn end_with(_: i32) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        // As wait(2) has them.
        for (raw, code) in [(0, 0), (7 << 8, 7), (255 << 8, 255), (15, 143), (9, 137)] {
            assert_eq!(exit_code(ExitStatus::from_raw(raw)), code);
        }
    }
}

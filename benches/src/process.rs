//! Processes beside this one: what they say when they start, and what they cost.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::Result;

/// A process that ends with this value, and, if it is ours, with this process too.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts a command; its standard output is left to whoever reads it.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::piped()).spawn();
        Ok(Process(child.with_context(|| format!("cannot start {:?}", command.get_program()))?))
    }

    /// Starts this very program with other arguments, and reads the first line that it prints.
    pub fn again(arguments: &[&str]) -> Result<(Self, String)> {
        Process::printing(Command::new(std::env::current_exe()?).args(arguments))
    }

    /// Starts a command, and reads the first line that it prints. Of its log there are warnings, and what is worse.
    pub fn printing(command: &mut Command) -> Result<(Self, String)> {
        let mut process = Process::start(command.stdout(Stdio::piped()).env("RUST_LOG", "warn"))?;
        let mut line = String::new();
        let output = process.0.stdout.take().context("no standard output")?;
        let mut output = BufReader::new(output);
        output.read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "{command:?} ended before it said anything");
        // Kept open, so that the process can go on printing.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Ok((process, line.trim().to_owned()))
    }

    /// Starts a command, and waits until it says this on its standard error: the whole line.
    pub fn saying(command: &mut Command, what: &str) -> Result<(Self, String)> {
        let mut process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::piped()))?;
        let mut errors = BufReader::new(process.0.stderr.take().context("no standard error")?);
        let mut line = String::new();
        while !line.contains(what) {
            line.clear();
            anyhow::ensure!(errors.read_line(&mut line)? > 0, "{:?} never said {what:?}", command.get_program());
        }
        // As above.
        std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::stderr()));
        Ok((process, line.trim().to_owned()))
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// For a process started by [`Process::again`]: waits until whoever started it is gone.
pub fn until_orphaned() {
    _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// The program of this name beside this one; `built_by` is the command that makes it.
pub fn program_beside(name: &str, built_by: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    anyhow::ensure!(path.is_file(), "there is no {}: {built_by}", path.display());
    Ok(path)
}

/// Ports of this machine that nobody listens on: as many as the array has.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let ports = many_free_ports(N)?;
    ports.try_into().map_err(|ports: Vec<u16>| anyhow::anyhow!("{} ports, and not {N}", ports.len()))
}

/// Below the ports that the kernel gives to connections that go out (32768 and up): one of those would be taken before somebody
/// listens there.
const PORTS: Range<u16> = 15_000..32_000;

/// So many ports of this machine that nobody listens on.
pub fn many_free_ports(count: usize) -> Result<Vec<u16>> {
    let mut tries: Vec<u16> = PORTS.collect();
    fastrand::shuffle(&mut tries);
    // All at once, so that they are different ones.
    let listening = tries.into_iter().filter_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
    let listeners: Vec<TcpListener> = listening.take(count).collect();
    anyhow::ensure!(listeners.len() == count, "{} ports are free, and not {count}", listeners.len());
    listeners.iter().map(|listener| anyhow::Ok(listener.local_addr()?.port())).collect()
}

/// A process with those that it has started, and that these have.
pub fn family(process: u32) -> Result<Vec<u32>> {
    let mut all = vec![process];
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let Ok(children) = fs::read_to_string(task?.path().join("children")) else { continue };
        for child in children.split_whitespace() {
            all.extend(family(child.parse::<u32>().context("/proc: children")?)?);
        }
    }
    Ok(all)
}

/// CPU time that a process has used so far, of threads that are alive.
pub fn cpu(process: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread may end while the others are read.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanoseconds += text.split(' ').next().unwrap_or_default().parse::<u64>().context("/proc: schedstat")?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// The same of all threads that it ever had, to a hundredth of a second: for a process whose threads come and go.
pub fn cpu_ever(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name of the program, in brackets, may have anything in it. Behind it, the time of its own and the system's for it are the
    // twelfth and the thirteenth word.
    let (_, behind) = stat.rsplit_once(')').context("/proc: stat")?;
    let ticks = behind.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>();
    Ok(Duration::from_millis(10 * ticks.context("/proc: stat")?))
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// All that is resident. The pages of the program's code and constants count, too, which it shares with whoever runs
    /// the same file, and which the kernel takes back at no cost.
    pub resident: u64,
    /// What it has written itself, heap and stacks.
    pub own: u64,
}

impl Memory {
    /// What a process has now.
    pub fn of(process: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let text = line.with_context(|| format!("/proc: no {name}"))?;
            let kibibytes: u64 =
                text.trim().trim_end_matches("kB").trim().parse().with_context(|| format!("/proc: {name}"))?;
            anyhow::Ok(kibibytes << 10)
        };
        Ok(Self { resident: bytes("VmRSS")?, own: bytes("RssAnon")? })
    }
}

/// Bytes as MiB.
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The processor, the cores, and how busy they are: what a table of figures is worth.
pub fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("unknown");
    let memory = read("/proc/meminfo");
    let memory = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    format!(
        "{}, {cores} cores, {} GiB; load before: {load}",
        model.unwrap_or("unknown processor"),
        memory.unwrap_or(0).div_ceil(1 << 20)
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_family_has_those_that_a_process_has_started() {
        // The child ends with its parent's standard input.
        let script = "exec 3<&0; cat <&3 >/dev/null & echo started; wait";
        let (process, line) = Process::printing(Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!(line, "started");
        let all = family(process.id()).unwrap();
        assert_eq!((all.len(), all[0]), (2, process.id()));
    }

    #[test]
    fn what_threads_used_that_have_ended_counts() {
        let own = std::process::id();
        let until = cpu_ever(own).unwrap() + Duration::from_millis(50);
        let work = std::thread::spawn(move || while cpu_ever(own).unwrap() < until {});
        work.join().unwrap();
        assert!(cpu_ever(own).unwrap() >= until);
    }

    #[test]
    fn a_free_port_is_none_that_a_connection_which_goes_out_may_be_given() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, many_free_ports(1).unwrap()[0])).unwrap();
        let ports: [u16; 50] = free_ports().unwrap();
        assert!(
            ports.iter().all(|port| PORTS.contains(port) && *port != taken.local_addr().unwrap().port()),
            "{ports:?}"
        );
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len());
    }

    #[test]
    fn a_program_that_is_not_there_says_how_it_is_built() {
        let error = program_beside("no-such-program", "cargo build").unwrap_err().to_string();
        assert!(error.ends_with("no-such-program: cargo build"), "{error}");
    }
}

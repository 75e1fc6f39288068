//! What the system knows of this process, under the names that every exporter has for it. Where there is no `/proc`, nothing.

use std::fmt::Write;
use std::fs;

use crate::serve::clients::metrics::family;

/// Ticks of the clock in `/proc/self/stat`: 100 a second on every architecture that Rust has for Linux.
const TICKS: f64 = 100.0;

/// Appends it as Prometheus text.
pub(super) fn write(out: &mut String) {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let open = fs::read_dir("/proc/self/fd").map(|entries| entries.count() as f64).ok();
    append(out, &read("/proc/self/stat"), &read("/proc/self/status"), open);
}

fn append(out: &mut String, stat: &str, status: &str, open: Option<f64>) {
    let kibibytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1024.0)
    };
    // The name, which may have anything in it, is in brackets.
    let ticks = stat.rsplit_once(") ").and_then(|(_, rest)| {
        let mut fields = rest.split(' ').skip(11).map(|field| field.parse::<f64>().ok());
        Some(fields.next()?? + fields.next()??)
    });
    for (name, kind, help, value) in [
        (
            "process_cpu_seconds_total",
            "counter",
            "Time that it has used, in seconds.",
            ticks.map(|ticks| ticks / TICKS),
        ),
        ("process_resident_memory_bytes", "gauge", "Memory that it occupies.", kibibytes("VmRSS")),
        ("process_virtual_memory_bytes", "gauge", "Memory that it has addresses for.", kibibytes("VmSize")),
        ("process_open_fds", "gauge", "Files and connections that are open.", open),
    ] {
        let Some(value) = value else { continue };
        family(out, name, kind, help);
        let _ = writeln!(out, "{name} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_a_process_are_read_whatever_it_is_called() {
        let mut out = String::new();
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 5 0 0 0 150 50 0 0 20 0 9 0 555 1000 20";
        append(&mut out, stat, "Name:\ta\nVmSize:\t    2048 kB\nVmRSS:\t    1024 kB\n", Some(12.0));
        for line in [
            "process_cpu_seconds_total 2",
            "process_resident_memory_bytes 1048576",
            "process_virtual_memory_bytes 2097152",
            "process_open_fds 12",
        ] {
            assert!(out.lines().any(|one| one == line), "{line} in {out}");
        }
        out.clear();
        append(&mut out, "", "", None);
        assert!(out.is_empty());
    }
}

//! What this host says of processes and of itself, from /proc.

use crate::endpoint::ProcessStat;
use std::fs;

/// Milliseconds of a tick of the times in /proc: USER_HZ is 100 on every Linux that QEMU runs on.
const TICK: f64 = 10.0;

/// The CPU time that a process has used, milliseconds in steps of 10, also where it has ended and nobody has collected
/// it.
pub(crate) fn cpu_time(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    ProcessStat::read(&stat).map(|stat| stat.ticks as f64 * TICK)
}

/// Ticks of all CPUs: taken away by the host's own hypervisor, and in all.
pub(crate) fn steal_ticks() -> Option<(u64, u64)> {
    parse_cpu(&fs::read_to_string("/proc/stat").ok()?)
}

fn parse_cpu(stat: &str) -> Option<(u64, u64)> {
    let fields: Vec<u64> =
        stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map_while(|field| field.parse().ok()).collect();
    // The last two, of guests, are in the first two as well.
    Some((*fields.get(7)?, fields.iter().take(8).sum()))
}

/// The load of the last minute.
pub(crate) fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// What the host is, for whoever reads the results.
pub(crate) fn environment() -> serde_json::Value {
    let line = |file: &str| fs::read_to_string(file).ok().map(|text| text.trim().to_owned());
    let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let model = text.lines().find_map(|line| line.strip_prefix("model name"))?;
        Some(model.trim_start_matches([':', '\t', ' ']).to_owned())
    });
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")).map(|rest| rest.trim().to_owned())
    });
    serde_json::json!({
        "host": line("/proc/sys/kernel/hostname"),
        "kernel": line("/proc/sys/kernel/osrelease"),
        "cpu": cpu,
        "cpus": std::thread::available_parallelism().ok().map(usize::from),
        "memory": memory,
        "governor": line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "huge_pages": line("/sys/kernel/mm/transparent_hugepage/enabled"),
        "clock": line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "qferry": env!("CARGO_PKG_VERSION"),
        "loadavg": line("/proc/loadavg"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_has_a_time() {
        assert!(cpu_time(std::process::id()).is_some());
        assert_eq!(cpu_time(u32::MAX), None);
    }

    #[test]
    fn stolen_time_is_the_eighth_field() {
        assert_eq!(parse_cpu("cpu  10 20 30 40 50 60 70 80 10 20\ncpu0 1\n"), Some((80, 360)));
        assert_eq!(parse_cpu("cpu  10 20"), None);
    }
}

//! What each measured figure is, and its unit.
//!
//! Pure.

/// A figure of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SweepMetric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) definition: &'static str,
}

const fn metric(name: &'static str, unit: &'static str, definition: &'static str) -> SweepMetric {
    SweepMetric { name, unit, definition }
}

/// All figures, in the order of the results. Of a figure `ledger.SPAN` there is one for each span of the blackout.
pub(crate) const METRICS: &[SweepMetric] = &[
    metric("total", "ms", "from the engine's start of work to its end, by its outcome"),
    metric("command", "ms", "from the start of the process that moves the guest, such as `qferry migrate`, to its end"),
    metric(
        "total.with-start",
        "ms",
        "`command`, and before it from the start of the destination's QEMU until its monitor was there; of a program that starts this QEMU itself, `command`",
    ),
    metric(
        "blackout",
        "ms",
        "from the stop of the guest's CPUs, which can be before STOP, to RESUME by QEMU's events, by the outcome",
    ),
    metric(
        "blackout.events",
        "ms",
        "from the source's last STOP to the destination's first RESUME by QEMU's own stamps, as the sweep heard them over further monitors, whoever moved the guest",
    ),
    metric("ledger.*", "ms", "the part of the blackout in this span; the spans sum up to the blackout"),
    metric("qemu-downtime", "ms", "`downtime` as the source's QEMU reports it"),
    metric(
        "outside.beats",
        "ms",
        "from the last beat heard of the guest on the source to the first on the destination, by this host's clock",
    ),
    metric(
        "outside.echo",
        "ms",
        "from the last UDP answer received through the source to the first through the destination",
    ),
    metric(
        "outside.announce",
        "ms",
        "from the last UDP answer through the source to the first announcement of the guest's address by the destination",
    ),
    metric(
        "outside.error",
        "ms",
        "how far outside.beats may be off: the 99th percentile of the time between two beats before the migration",
    ),
    metric("ram.bytes", "B", "sent over the RAM channel"),
    metric("ram.amplification", "1", "ram.bytes by the memory of the machine"),
    metric("ram.iterations", "1", "passes over memory"),
    metric("ram.throttle", "%", "the most that the guest's CPUs were slowed down"),
    metric("disk.bytes", "B", "copied by the mirrors"),
    metric("disk.amplification", "1", "disk.bytes by what the guest had filled"),
    metric(
        "link.bytes",
        "B",
        "carried by the link in both directions from the start of the process that moves the guest to its end, with headers and without packets that were lost, as its device at the source counted them; where there is a table `link`",
    ),
    metric(
        "postcopy.blocked",
        "ms",
        "for how long all CPUs of the guest waited for pages after the switchover to postcopy",
    ),
    metric("postcopy.fault", "us", "mean time of such a wait for one page"),
    metric("postcopy.fault.p99", "us", "99 of 100 such waits took at most this long"),
    metric("guest.pages.before", "1/s", "pages that the guest wrote in the time before the migration"),
    metric("guest.pages.during", "1/s", "the same from the start of the migration to the last beat on the source"),
    metric(
        "guest.pages.after",
        "1/s",
        "the same from the first beat on the destination to the end of the time after it",
    ),
    metric(
        "guest.page-time.before",
        "us",
        "the median time of such a write is at most this, a power of two of nanoseconds",
    ),
    metric("guest.page-time.during", "us", "the same during the migration"),
    metric("guest.page-time.after", "us", "the same after it"),
    metric("guest.page-time.p99.before", "us", "99 of 100 such writes took at most this"),
    metric("guest.page-time.p99.during", "us", "the same during the migration"),
    metric("guest.page-time.p99.after", "us", "the same after it"),
    metric("guest.writes.before", "1/s", "writes to disks that ended in the time before the migration"),
    metric("guest.writes.during", "1/s", "the same during the migration"),
    metric("guest.writes.after", "1/s", "the same after it"),
    metric("guest.write-time.before", "us", "the median time of such a write, with its flush, is at most this"),
    metric("guest.write-time.during", "us", "the same during the migration"),
    metric("guest.write-time.after", "us", "the same after it"),
    metric("guest.write-time.p99.before", "us", "99 of 100 such writes took at most this"),
    metric("guest.write-time.p99.during", "us", "the same during the migration"),
    metric("guest.write-time.p99.after", "us", "the same after it"),
    metric(
        "guest.recovery",
        "ms",
        "from the first beat on the destination until the guest writes 95 % of the pages of before for 200 ms; none where it did not within the time after",
    ),
    metric("echo.before", "us", "median time of a UDP echo before the migration"),
    metric("echo.during", "us", "the same during the migration, up to the blackout"),
    metric("echo.after", "us", "the same after it"),
    metric("echo.p99.before", "us", "99 of 100 such echoes took at most this"),
    metric("echo.p99.during", "us", "the same during the migration, up to the blackout"),
    metric("echo.p99.after", "us", "the same after it"),
    metric("verified.pages", "1", "pages of memory that were read after the migration and found right"),
    metric("verified.blocks", "1", "blocks of disks that were read after the migration and found right"),
    metric("cpu.source", "ms", "CPU time of the source's QEMU during the migration"),
    metric("cpu.destination", "ms", "the same of the destination's"),
    metric("cpu.engine", "ms", "the same of the process that moved the guest, without those that it started"),
    metric("host.steal", "%", "the part of all CPU time that the host's own hypervisor took away during the migration"),
    metric("host.load", "1", "the load of the last minute at the trial's start"),
    metric("predicted.total", "ms", "total, as it was predicted; with predict = true under [migrate]"),
    metric("predicted.blackout", "ms", "blackout, as it was predicted"),
    metric("predicted.ram.bytes", "B", "ram.bytes, as it was predicted"),
    metric("predicted.disk.bytes", "B", "disk.bytes, as it was predicted"),
];

/// The figures that grow for as long as a migration goes on: of one that did not move the guest they are at least what
/// they are.
pub(crate) const GROWING: [&str; 3] = ["total", "total.with-start", "command"];

/// The definition of a figure of this name.
pub(crate) fn definition(name: &str) -> Option<&'static SweepMetric> {
    METRICS.iter().find(|metric| {
        let is_one_of = |start: &str| name.starts_with(start) && name.len() > start.len();
        metric.name == name || metric.name.strip_suffix('*').is_some_and(is_one_of)
    })
}

//! The cost of a check that reads no contents: its time, and what the guest feels of the questions.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use qferry_bed::{DiskSpec, Error, Pair, Result, Side, Spec, Workload};

use crate::storage::check;
use crate::table::{Required, Table, middle};
use crate::{millis, run, runs};

/// The machine that is checked: this many disks, and this many more devices behind bridges.
const DISKS: usize = 10;
const DEVICES: usize = 50;
/// The number of devices behind each bridge.
const BEHIND: usize = 25;
/// The time between two beats of the guest.
const BEAT: Duration = Duration::from_millis(2);

/// Measures, and says whether every requirement was met.
pub(crate) fn bench(qferry: &Path) -> Result<bool> {
    let runs = runs(10);
    println!(
        "preflight: {runs} checks of {DISKS} disks and {DEVICES} devices, alternating with a wait of the same time\n"
    );
    let pair = Pair::start(&machine())?;
    let (mut checks, mut starts, mut gaps, mut idle) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for number in 0..runs {
        let began = Instant::now();
        let took = check(qferry, &pair, "off", &["--no-measure"])?.took;
        gaps.push(longest_gap(&pair, began)?);
        let start = millis(run(Command::new(qferry).arg("--version"))?.took);
        let waited = Instant::now();
        std::thread::sleep(took);
        idle.push(longest_gap(&pair, waited)?);
        let (gap, without) = (gaps.last().copied().unwrap_or_default(), idle.last().copied().unwrap_or_default());
        let took = millis(took);
        println!(
            "{:>3} check {took:>6.1} ms, a start alone {start:>4.1}, gap {gap:>5.1}, without {without:>5.1}",
            number + 1
        );
        checks.push(took);
        starts.push(start);
    }
    let mut table = Table::begin("engine");
    let at_most = Some(Required::AtMost(1.0));
    let name = format!("check of {DISKS} disks and {DEVICES} devices, against 400 ms");
    table.row(&name, "ms", middle(checks), Some(400.0), at_most);
    table.row("  starting the command", "ms", middle(starts), None, None);
    table.row("the guest's longest gap meanwhile, against 25 ms", "ms", middle(gaps), Some(25.0), at_most);
    table.row("  without a check", "ms", middle(idle), None, None);
    println!("\nmedians; the guest beats every {} ms", BEAT.as_millis());
    Ok(table.met)
}

fn machine() -> Spec {
    let bridges =
        (0..DEVICES.div_ceil(BEHIND)).map(|bridge| format!("pci-bridge,id=bridge{bridge},chassis_nr={}", bridge + 1));
    let behind = (0..DEVICES).map(|number| format!("virtio-rng-pci,id=rng{number},bus=bridge{}", number / BEHIND));
    let extra = bridges.chain(behind).flat_map(|device| ["-device".to_owned(), device]).collect();
    let workload = Workload { beat: BEAT, dirty: 0, write: 0, ..Workload::default() };
    Spec { workload, disks: vec![DiskSpec::small(); DISKS], extra, ..Spec::default() }
}

/// The longest time between two beats of the source since an instant, milliseconds.
fn longest_gap(pair: &Pair, since: Instant) -> Result<f64> {
    let beats = pair.beats(Side::Source);
    let gaps = beats.windows(2).filter_map(|two| {
        let (before, after) = (two.first()?.at, two.last()?.at);
        (after >= since).then(|| millis(after - before))
    });
    gaps.reduce(f64::max).ok_or_else(|| Error::new("the guest did not beat"))
}

//! Boots a guest and says how it does. `boot [VERSION] [idle|busy] [migrate [LIMIT_MS]]`

use std::fs;
use std::time::{Duration, Instant};

use qferry_bed::{Pair, Result, Side, Spec, Workload, straight_line};

const MIB: u64 = 1 << 20;
const WAIT: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let mut spec = Spec::default();
    let mut migrate = false;
    let mut downtime = Duration::from_millis(300);
    for word in std::env::args().skip(1) {
        let workload = spec.workload.clone();
        match word.as_str() {
            "idle" => spec.workload = Workload { verify: 0, write: 0, ..workload },
            "busy" => spec.workload = Workload { ram: 64 * MIB, dirty: 20 * MIB, write: 500, ..workload },
            "migrate" => migrate = true,
            limit if limit.bytes().all(|byte| byte.is_ascii_digit()) => {
                downtime = Duration::from_millis(limit.parse().unwrap_or(300));
            }
            version => spec.version = version.to_owned(),
        }
    }
    let began = Instant::now();
    let pair = Pair::start(&spec)?;
    println!("pair ready after {:.2?}, of that the guest's boot {:.2?}", began.elapsed(), pair.boot);

    let (since, used) = (Instant::now(), processor_time(pair.source.pid()));
    let (writes, pages) = (pair.acknowledged(), pair.verified().pages);
    pair.wait_for_beats(Side::Source, 1000, WAIT)?;
    let seconds = since.elapsed().as_secs_f64();
    let a_second = |count: u64| count as f64 / seconds;
    println!("1000 beats in {seconds:.2} s, longest gap {:.2?}", pair.longest_gap(since).map(|gap| gap.length));
    println!("{:.0} writes/s", a_second(pair.acknowledged() - writes));
    println!("{:.0} pages/s verified", a_second(pair.verified().pages - pages));
    println!("QEMU at {:.0} %", a_second(processor_time(pair.source.pid()) - used));

    let mut checked = Side::Source;
    if migrate {
        let since = Instant::now();
        println!("{:#?}", straight_line::migrate_within(&pair, downtime)?);
        let moved = Instant::now();
        pair.wait_for_beats(Side::Destination, 100, WAIT)?;
        pair.wait_until_verified(WAIT)?;
        let gap = pair.longest_gap(since).map(|gap| gap.length);
        println!("longest gap {gap:.2?}, all verified after {:.2?}", moved.elapsed());
        checked = Side::Destination;
    }
    println!("errors {:?}", pair.errors());
    println!("leftovers {:?}", pair.machine(checked).leftovers()?);
    println!("{:?}", pair.check_disks(checked)?);
    Ok(())
}

/// The processor time of a process so far, in hundredths of a second.
fn processor_time(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // User and system time, counted from behind the name.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<u64>().ok()).sum()
}

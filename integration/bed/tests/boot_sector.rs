//! Boot sectors on real QEMUs: each step does what its name says.

use std::time::Duration;

use qferry_bed::{BootSector, Pair, Result, Spec};
use serde_json::json;

const WAIT: Duration = Duration::from_secs(60);

fn start(boot: BootSector, extra: &[&str]) -> Result<Pair> {
    let extra = extra.iter().map(|word| (*word).to_owned()).collect();
    Pair::start(&Spec { boot: Some(boot), extra, ..Spec::quick() })
}

#[test]
fn a_guest_powers_itself_off() -> Result<()> {
    let pair = start(BootSector::new().wait(2).power_off(), &["-no-shutdown"])?;
    pair.source.wait_for_status("shutdown", WAIT)?;
    let pair = start(BootSector::new().wait(2).power_off(), &[])?;
    pair.source.wait_for_end(WAIT)?;
    Ok(())
}

#[test]
fn a_guest_suspends_panics_and_resets() -> Result<()> {
    let pair = start(BootSector::new().wait(2).suspend(), &[])?;
    pair.source.wait_for_status("suspended", WAIT)?;
    let pair = start(BootSector::new().wait(2).panic(), &["-device", "pvpanic", "-action", "panic=pause"])?;
    pair.source.wait_for_status("guest-panicked", WAIT)?;
    let pair = start(BootSector::new().wait(2).reset(), &["-action", "reboot=reset"])?;
    pair.source.wait_for_event(WAIT, |event| event.name == "RESET")?;
    Ok(())
}

#[test]
fn a_guest_writes_to_its_disk() -> Result<()> {
    let pair = start(BootSector::new().repeat(|steps| steps.dirty(16).write(128, 16).wait(1)), &[])?;
    let writes = || -> Result<u64> {
        let stats = pair.source.qmp("query-blockstats", &json!({}))?;
        Ok(stats[0]["stats"]["wr_operations"].as_u64().unwrap_or_default())
    };
    let deadline = std::time::Instant::now() + WAIT;
    while writes()? < 3 {
        assert!(std::time::Instant::now() < deadline, "no writes in {WAIT:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

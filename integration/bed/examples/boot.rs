//! Boots a guest and says how it does. `boot [VERSION] [migrate]`

use std::time::{Duration, Instant};

use qferry_bed::{Pair, Result, Side, Spec, straight_line};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let version = arguments.next().unwrap_or_else(|| Spec::default().version);
    let began = Instant::now();
    let pair = Pair::start(&Spec { version, ..Spec::default() })?;
    println!("pair ready after {:?}, of that the guest's boot {:?}", began.elapsed(), pair.boot);

    let (since, writes, verified) = (Instant::now(), pair.acknowledged(), pair.verified());
    let wait = Duration::from_secs(60);
    pair.wait_for_beats(Side::Source, 1000, wait)?;
    let seconds = since.elapsed().as_secs_f64();
    println!("1000 beats in {seconds:.2} s, longest gap {:?}", pair.longest_gap(since).map(|gap| gap.length));
    println!("{:.0} writes/s", (pair.acknowledged() - writes) as f64 / seconds);
    println!("{:.0} pages/s verified", (pair.verified().pages - verified.pages) as f64 / seconds);

    let mut checked = Side::Source;
    if arguments.next().as_deref() == Some("migrate") {
        let since = Instant::now();
        println!("{:#?}", straight_line::migrate(&pair)?);
        let moved = Instant::now();
        pair.wait_until_verified(wait)?;
        println!(
            "longest gap {:?}, verified after {:?}",
            pair.longest_gap(since).map(|gap| gap.length),
            moved.elapsed()
        );
        checked = Side::Destination;
    }
    println!("errors {:?}", pair.errors());
    println!("leftovers {:?}", pair.machine(checked).leftovers()?);
    println!("{:?}", pair.check_disks(checked)?);
    Ok(())
}

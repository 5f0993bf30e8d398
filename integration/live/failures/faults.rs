//! The core of `scripts/faults`, and a short soak: the guest runs once, with all that it has written, whatever happens.
//!
//! Promise: no-endless-wait.

use qferry_bed::Side;
use std::{path::Path, time::Duration};

#[allow(dead_code, unused_imports, reason = "scripts/faults uses all of it")]
#[path = "../../bed/examples/faults/matrix/mod.rs"]
mod matrix;

use matrix::{CORE, Fault, PHASES, Point, Soak, Stage, clean, run, soak, switchover};

fn qferry() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_qferry"))
}

#[test]
fn the_cells_that_matter_most() {
    let mut stage = Stage::new(qferry(), "10.0.13");
    let seen = clean(&mut stage).unwrap();
    let points: Vec<Point> = PHASES.map(Point::Phase).into_iter().chain(switchover(&seen)).collect();
    let mut wrong = Vec::new();
    for (fault, name) in CORE {
        let point = points.iter().find(|point| point.to_string() == name);
        let point = point.unwrap_or_else(|| panic!("no point {name}: {points:?}"));
        assert_eq!(fault.left_out(point), None);
        let cell = run(&mut stage, fault, point, false);
        wrong.extend(cell.wrong.iter().map(|wrong| format!("{} at {name}: {wrong}", fault.name())));
    }
    wrong.extend(stage.retire().err().map(|error| error.to_string()));
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn there_and_back_with_faults_at_random() {
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let asked = Soak {
        qferry: qferry(),
        version: "10.0.13",
        seed,
        migrations: 12,
        limit: Duration::from_secs(60),
        lanes: 1,
        // Two faults are left out for their time: a dead guest has to be replaced, and the engine waits long for a
        // black hole.
        without: &[Fault::Killed(Side::Source), Fault::NbdHole],
    };
    let tally =
        soak(&asked, &|number, cell| println!("{number} {} {}: {:?}", cell.fault.name(), cell.point, cell.ended));
    assert_eq!(tally.wrong, Vec::<String>::new(), "seed {seed}");
    assert!(tally.migrations > 0 && tally.moved + tally.back + tally.nowhere == tally.migrations, "{tally:?}");
}

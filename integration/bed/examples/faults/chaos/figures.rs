//! Whether the times that an engine told can be true, by what was seen from outside. No query is made from here.

use std::time::Duration;

use super::engine::Report;
use super::rules::Allows;

/// The most by which an engine on a busy host may read an event later than QEMU sent it.
const LATE: Duration = Duration::from_secs(1);
/// More of that where a clock was set: QEMU's own stamps are of no use then.
const LATER: Duration = Duration::from_secs(1);
/// More of that for an engine that was stopped, or whose monitor was silent.
const BLIND: Duration = Duration::from_secs(4);

/// What is wrong with the times of an engine whose guest has moved. The guest stood between `bounds` by outside
/// samples; `least` tells whether nobody else stopped the guest, so that the lower bound holds.
pub(crate) fn absurd(
    report: &Report,
    allows: &Allows,
    bounds: Option<(Duration, Duration)>,
    least: bool,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut late = LATE;
    late += if allows.stepped { LATER } else { Duration::ZERO };
    late += if allows.blinds { BLIND } else { Duration::ZERO };
    let late = late.as_secs_f64() * 1000.0;
    let took = report.took.as_secs_f64() * 1000.0;
    if let Some(total) = report.figure("total_ms").filter(|total| *total < 0.0 || *total > took + late) {
        wrong.push(format!("a total of {total} ms, and the engine was there for {took:.0} ms"));
    }
    let Some((blackout, (at_least, at_most))) = report.figure("blackout_ms").zip(bounds) else { return wrong };
    let [at_least, at_most] = [at_least, at_most].map(|bound| bound.as_secs_f64() * 1000.0);
    if blackout < 0.0 || blackout > at_most + late {
        wrong.push(format!("a blackout of {blackout} ms, and the guest stood for {at_most:.0} ms at most"));
    }
    // A stop for a mirror's start may not have been seen to end.
    let stood = report.figure("paused_ms").unwrap_or_default().max(blackout);
    if least && !allows.blinds && stood + late < at_least {
        wrong.push(format!("a blackout of {blackout} ms, and the guest stood for {at_least:.0} ms at least"));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_that_a_clock_has_falsified_are_found() {
        let (ms, none) = (Duration::from_millis, Allows::default());
        let stepped = Allows { stepped: true, ..Allows::default() };
        for (blackout, allows, bounds, right) in [
            (14.0, &none, (0, 60), true),
            (1200.0, &none, (0, 60), false),
            (1200.0, &stepped, (0, 60), true),
            (5014.0, &stepped, (0, 60), false),
            (0.0, &stepped, (0, 60), true),
            (-1.0, &stepped, (0, 60), false),
            (0.0, &stepped, (2500, 2700), false),
            (1900.0, &none, (2500, 2700), true),
        ] {
            let outcome = json!({"blackout_ms": blackout, "paused_ms": blackout, "total_ms": 900});
            let report = Report { outcome, took: ms(1000), ..Report::default() };
            let bounds = Some((ms(bounds.0), ms(bounds.1)));
            let wrong = absurd(&report, allows, bounds, true);
            assert_eq!(wrong.is_empty(), right, "{blackout}: {wrong:?}");
            let hour = Report { outcome: json!({"total_ms": 3_600_900}), took: ms(1000), ..Report::default() };
            assert_eq!(absurd(&hour, allows, bounds, true).len(), 1);
        }
    }
}

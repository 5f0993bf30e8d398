//! Who runs the guest, asked all the time over a monitor that is neither the engine's nor the attacker's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use qferry_bed::{Beat, Pair, Side};

/// Between two questions.
const INTERVAL: Duration = Duration::from_millis(15);

/// An answer `running`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    pub(crate) side: Side,
}

/// Asks both sides in turn until `over`. A QEMU that has ended or does not answer runs nothing that could be seen.
pub(crate) fn sample(pair: &Pair, over: &AtomicBool) -> Vec<Sample> {
    let mut running = Vec::new();
    while !over.load(Ordering::Relaxed) {
        for machine in [&pair.source, &pair.destination] {
            let asked = matches!(machine.alive(), Ok(true)).then(|| machine.status());
            if let Some(Ok(status)) = asked {
                if status == "running" {
                    running.push(Sample { at: Instant::now(), side: machine.side() });
                }
            }
        }
        sleep(INTERVAL);
    }
    running
}

/// The sides in the order in which each answered `running`, without repetition. A guest that moves shows as the source
/// and then the destination; a side that comes back shows a second runner, or work undone. Each answer came before the
/// next question was sent, so no delay can turn the order round.
pub(crate) fn order(samples: &[Sample]) -> Vec<Side> {
    let mut order: Vec<Side> = samples.iter().map(|sample| sample.side).collect();
    order.dedup();
    order
}

/// Whether the guest's own count shows that both sides ran it: a beat of the source that the destination made, too.
pub(crate) fn beats_twice(beats: &[Beat]) -> Option<u64> {
    let of = |side: Side| beats.iter().filter(move |beat| beat.side == side).map(|beat| beat.number);
    let first = of(Side::Destination).min()?;
    of(Side::Source).find(|number| *number >= first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_that_runs_again_is_seen() {
        let at = Instant::now();
        let (source, destination) = (Side::Source, Side::Destination);
        let sample = |side| Sample { at, side };
        assert_eq!(order(&[sample(source), sample(source), sample(destination)]), [source, destination]);
        let again = [sample(source), sample(destination), sample(source)];
        assert_eq!(order(&again), [source, destination, source]);
    }

    #[test]
    fn a_beat_of_both_sides_is_seen() {
        let at = Instant::now();
        let beat = |number, side| Beat { at, number, side };
        let moved = [beat(1, Side::Source), beat(2, Side::Source), beat(3, Side::Destination)];
        assert_eq!(beats_twice(&moved), None);
        assert_eq!(beats_twice(&[&moved[..], &[beat(3, Side::Source)]].concat()), Some(3));
        assert_eq!(beats_twice(&[beat(1, Side::Source)]), None);
    }
}

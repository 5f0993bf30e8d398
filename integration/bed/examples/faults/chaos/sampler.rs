//! Who runs the guest, asked all the time over a monitor that is neither the engine's nor the attacker's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use qferry_bed::{Beat, Pair, Side};

/// Between two questions.
const INTERVAL: Duration = Duration::from_millis(15);

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) asked: Instant,
    pub(crate) answered: Instant,
    pub(crate) side: Side,
    pub(crate) runs: bool,
}

/// Asks both sides in turn until `over`. A QEMU that has ended or does not answer runs nothing that could be seen.
pub(crate) fn sample(pair: &Pair, over: &AtomicBool) -> Vec<Sample> {
    let mut samples = Vec::new();
    while !over.load(Ordering::Relaxed) {
        for machine in [&pair.source, &pair.destination] {
            let asked = Instant::now();
            if let Some(Ok(status)) = matches!(machine.alive(), Ok(true)).then(|| machine.status()) {
                let (answered, side) = (Instant::now(), machine.side());
                samples.push(Sample { asked, answered, side, runs: status == "running" });
            }
        }
        sleep(INTERVAL);
    }
    samples
}

/// The sides in the order in which each answered `running`, without repetition. A guest that moves shows as the source
/// and then the destination; a side that comes back shows a second runner, or work undone. Each answer came before the
/// next question was sent, so no delay can turn the order round.
pub(crate) fn order(samples: &[Sample]) -> Vec<Side> {
    let mut order: Vec<Side> = samples.iter().filter(|sample| sample.runs).map(|sample| sample.side).collect();
    order.dedup();
    order
}

/// The least and the most time for which a guest stood that moved once: between two answers that it did not run, and
/// between two that it ran. A QEMU is in the state of its answer at some time between question and answer.
pub(crate) fn stood(samples: &[Sample]) -> Option<(Duration, Duration)> {
    let is = |sample: &&Sample, side: Side, runs: bool| sample.side == side && sample.runs == runs;
    let left = samples.iter().rfind(|sample| is(sample, Side::Source, true))?;
    let arrived = samples.iter().find(|sample| is(sample, Side::Destination, true))?;
    let stands = samples.iter().find(|sample| is(sample, Side::Source, false) && sample.asked >= left.answered);
    let waits = samples.iter().rfind(|sample| is(sample, Side::Destination, false) && sample.answered <= arrived.asked);
    let least = stands.zip(waits).map(|(stands, waits)| waits.asked.saturating_duration_since(stands.answered));
    Some((least.unwrap_or_default(), arrived.answered.saturating_duration_since(left.asked)))
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
        let sample = |side| Sample { asked: at, answered: at, side, runs: true };
        assert_eq!(order(&[sample(source), sample(source), sample(destination)]), [source, destination]);
        let again = [sample(source), sample(destination), sample(source)];
        assert_eq!(order(&again), [source, destination, source]);
    }

    #[test]
    fn a_pause_lies_between_two_bounds() {
        let (begin, ms) = (Instant::now(), Duration::from_millis);
        let sample = |at: u64, side, runs| Sample { asked: begin + ms(at), answered: begin + ms(at + 2), side, runs };
        let (source, destination) = (Side::Source, Side::Destination);
        let mut samples = vec![sample(0, source, true), sample(4, destination, false), sample(10, source, true)];
        assert_eq!(stood(&samples), None);
        samples.extend([sample(20, source, false), sample(30, destination, false), sample(60, destination, false)]);
        samples.push(sample(70, destination, true));
        assert_eq!(stood(&samples), Some((ms(38), ms(62))));
        samples.retain(|sample| sample.runs);
        assert_eq!(stood(&samples), Some((ms(0), ms(62))));
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

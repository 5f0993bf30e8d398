//! The blackout ledger: where every microsecond between STOP on the source and RESUME on the destination went.
//!
//! Pure. Every span is named after its end, and the spans sum to the blackout by construction.

use super::moment::Moment;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The clock by which a ledger is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Clock {
    /// QEMU's event timestamps: both processes and the engine share one host and so one wall clock.
    Qemu,
    /// The engine's own clock at receipt of each event: right for two hosts, whose clocks differ, and off by the time
    /// that one message is on its way.
    Engine,
}

/// The points between STOP and RESUME, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mark {
    /// STOP on the source: the guest's vCPUs are stopped.
    Stop,
    /// The source reached `pre-switchover`: its disks are drained and flushed.
    PreSwitchover,
    /// The engine has sent `block-job-cancel` to every mirror.
    SettleSent,
    /// The last mirror concluded.
    MirrorsSettled,
    /// The destination no longer lists its exports.
    ExportsGone,
    /// The source reported `completed`.
    SourceCompleted,
    /// The destination reported `completed`.
    DestinationCompleted,
    /// RESUME on the destination.
    Resume,
}

impl Mark {
    /// The name of the span that ends here.
    fn span(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::PreSwitchover => "quiesce",
            Self::SettleSent => "engine",
            Self::MirrorsSettled => "mirror-settle",
            Self::ExportsGone => "export-close",
            Self::SourceCompleted => "ram-and-devices",
            Self::DestinationCompleted => "destination-load",
            Self::Resume => "activate-and-resume",
        }
    }
}

/// One span of the blackout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Span {
    /// The span's name.
    pub span: String,
    /// The span's length in milliseconds, exact to the microsecond.
    pub ms: f64,
}

/// The marks of one blackout, in the order in which they came in.
#[derive(Debug, Clone)]
pub struct Ledger {
    clock: Clock,
    marks: Vec<(Mark, Moment)>,
}

impl Ledger {
    /// An empty ledger that will read the given clock.
    pub fn new(clock: Clock) -> Self {
        Self { clock, marks: Vec::new() }
    }

    /// The clock by which the ledger is read.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Notes the moment of a mark.
    pub fn mark(&mut self, mark: Mark, moment: Moment) {
        self.marks.push((mark, moment));
    }

    /// The spans from STOP to RESUME and their sum in milliseconds; `None` where the guest did not stop and resume.
    ///
    /// The time of a missing mark falls to the next span. A mark that is stamped before its predecessor (the
    /// destination can complete first) gets a span of zero.
    pub fn spans(&self) -> Option<(Vec<Span>, f64)> {
        let mut marks: Vec<(Mark, u64)> =
            self.marks.iter().map(|&(mark, moment)| (mark, self.micros(moment))).collect();
        marks.sort_by_key(|&(mark, _)| mark);
        let (&(first, start), &(last, end)) = (marks.first()?, marks.last()?);
        if first != Mark::Stop || last != Mark::Resume {
            return None;
        }
        let end = end.max(start);
        let mut at = start;
        let spans = marks[1..]
            .iter()
            .map(|&(mark, micros)| {
                let until = if mark == Mark::Resume { end } else { micros.clamp(at, end) };
                let span = Span { span: mark.span().to_owned(), ms: millis(until - at) };
                at = until;
                span
            })
            .collect();
        Some((spans, millis(end - start)))
    }

    fn micros(&self, moment: Moment) -> u64 {
        let since = match self.clock {
            Clock::Qemu => moment.wall,
            // Only differences count, so any common origin will do.
            Clock::Engine => {
                self.marks.iter().map(|(_, m)| m.local).min().map_or(Duration::ZERO, |origin| moment.local - origin)
            }
        };
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Instant;

    const ORDER: [Mark; 8] = [
        Mark::Stop,
        Mark::PreSwitchover,
        Mark::SettleSent,
        Mark::MirrorsSettled,
        Mark::ExportsGone,
        Mark::SourceCompleted,
        Mark::DestinationCompleted,
        Mark::Resume,
    ];

    fn ledger(clock: Clock, marks: &[(Mark, u64)]) -> Ledger {
        let (origin, mut ledger) = (Instant::now(), Ledger::new(clock));
        for &(mark, micros) in marks {
            let since = Duration::from_micros(micros);
            ledger.mark(mark, Moment { local: origin + since, wall: Duration::from_secs(1_700_000_000) + since });
        }
        ledger
    }

    #[test]
    fn a_blackout_is_told_span_by_span() {
        for clock in [Clock::Qemu, Clock::Engine] {
            let ledger = ledger(
                clock,
                &[(Mark::Stop, 0), (Mark::PreSwitchover, 2500), (Mark::MirrorsSettled, 5100), (Mark::Resume, 8000)],
            );
            let (spans, total) = ledger.spans().expect("stopped and resumed");
            let named: Vec<(&str, f64)> = spans.iter().map(|s| (s.span.as_str(), s.ms)).collect();
            assert_eq!(named, [("quiesce", 2.5), ("mirror-settle", 2.6), ("activate-and-resume", 2.9)]);
            assert_eq!(total, 8.0);
        }
    }

    #[test]
    fn a_destination_that_completes_first_costs_nothing() {
        let marks =
            [(Mark::Stop, 0), (Mark::SourceCompleted, 900), (Mark::DestinationCompleted, 700), (Mark::Resume, 1000)];
        let (spans, _) = ledger(Clock::Qemu, &marks).spans().expect("stopped and resumed");
        assert_eq!(spans[1], Span { span: "destination-load".to_owned(), ms: 0.0 });
    }

    #[test]
    fn without_stop_or_resume_there_is_no_blackout() {
        assert_eq!(ledger(Clock::Qemu, &[]).spans(), None);
        assert_eq!(ledger(Clock::Qemu, &[(Mark::Stop, 1)]).spans(), None);
        assert_eq!(ledger(Clock::Qemu, &[(Mark::PreSwitchover, 1), (Mark::Resume, 2)]).spans(), None);
    }

    proptest! {
        #[test]
        fn spans_sum_to_the_blackout_whatever_the_stamps(stamps in prop::collection::vec(0u64..1_000_000, 8), engine: bool) {
            let marks: Vec<_> = ORDER.into_iter().zip(stamps).collect();
            let clock = if engine { Clock::Engine } else { Clock::Qemu };
            let (spans, total) = ledger(clock, &marks).spans().expect("stopped and resumed");
            prop_assert!((spans.iter().map(|s| s.ms).sum::<f64>() - total).abs() < 1e-6);
            prop_assert!(spans.iter().all(|s| s.ms >= 0.0));
        }
    }
}

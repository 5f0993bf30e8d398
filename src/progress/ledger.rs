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
pub enum LedgerClock {
    /// QEMU's event timestamps: both processes and the engine share one host and so one wall clock.
    Qemu,
    /// The engine's own clock at receipt of each event: right for two hosts, whose clocks differ, and off by the time
    /// that one message is on its way.
    Engine,
}

/// The points between STOP and RESUME, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LedgerMark {
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

impl LedgerMark {
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
pub struct LedgerSpan {
    /// The span's name.
    pub span: String,
    /// The span's length in milliseconds, exact to the microsecond.
    pub ms: f64,
}

/// The marks of one blackout, in the order in which they came in.
#[derive(Debug, Clone)]
pub struct BlackoutLedger {
    clock: LedgerClock,
    marks: Vec<(LedgerMark, Moment)>,
}

impl BlackoutLedger {
    /// An empty ledger that will read the given clock.
    pub fn new(clock: LedgerClock) -> Self {
        Self { clock, marks: Vec::new() }
    }

    /// The clock by which the ledger is read.
    pub fn clock(&self) -> LedgerClock {
        self.clock
    }

    /// Notes the moment of a mark.
    pub fn mark(&mut self, mark: LedgerMark, moment: Moment) {
        self.marks.push((mark, moment));
    }

    /// The spans from STOP to RESUME and their sum in milliseconds; `None` where the guest did not stop and resume.
    ///
    /// The time of a missing mark falls to the next span. A mark that is stamped before its predecessor (the
    /// destination can complete first) gets a span of zero.
    pub fn spans(&self) -> Option<(Vec<LedgerSpan>, f64)> {
        let mut marks: Vec<(LedgerMark, u64)> =
            self.marks.iter().map(|&(mark, moment)| (mark, self.micros(moment))).collect();
        marks.sort_by_key(|&(mark, _)| mark);
        let (&(first, start), &(last, end)) = (marks.first()?, marks.last()?);
        if first != LedgerMark::Stop || last != LedgerMark::Resume {
            return None;
        }
        let end = end.max(start);
        let mut at = start;
        let spans = marks[1..]
            .iter()
            .map(|&(mark, micros)| {
                let until = if mark == LedgerMark::Resume { end } else { micros.clamp(at, end) };
                let span = LedgerSpan { span: mark.span().to_owned(), ms: millis(until - at) };
                at = until;
                span
            })
            .collect();
        Some((spans, millis(end - start)))
    }

    fn micros(&self, moment: Moment) -> u64 {
        let since = match self.clock {
            LedgerClock::Qemu => moment.wall,
            // Only differences count, so any common origin will do.
            LedgerClock::Engine => {
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

    const ORDER: [LedgerMark; 8] = [
        LedgerMark::Stop,
        LedgerMark::PreSwitchover,
        LedgerMark::SettleSent,
        LedgerMark::MirrorsSettled,
        LedgerMark::ExportsGone,
        LedgerMark::SourceCompleted,
        LedgerMark::DestinationCompleted,
        LedgerMark::Resume,
    ];

    fn ledger(clock: LedgerClock, marks: &[(LedgerMark, u64)]) -> BlackoutLedger {
        let (origin, mut ledger) = (Instant::now(), BlackoutLedger::new(clock));
        for &(mark, micros) in marks {
            let since = Duration::from_micros(micros);
            ledger.mark(mark, Moment { local: origin + since, wall: Duration::from_secs(1_700_000_000) + since });
        }
        ledger
    }

    #[test]
    fn a_blackout_is_told_span_by_span() {
        for clock in [LedgerClock::Qemu, LedgerClock::Engine] {
            let ledger = ledger(
                clock,
                &[
                    (LedgerMark::Stop, 0),
                    (LedgerMark::PreSwitchover, 2500),
                    (LedgerMark::MirrorsSettled, 5100),
                    (LedgerMark::Resume, 8000),
                ],
            );
            let (spans, total) = ledger.spans().expect("stopped and resumed");
            let named: Vec<(&str, f64)> = spans.iter().map(|s| (s.span.as_str(), s.ms)).collect();
            assert_eq!(named, [("quiesce", 2.5), ("mirror-settle", 2.6), ("activate-and-resume", 2.9)]);
            assert_eq!(total, 8.0);
        }
    }

    #[test]
    fn a_destination_that_completes_first_costs_nothing() {
        let marks = [
            (LedgerMark::Stop, 0),
            (LedgerMark::SourceCompleted, 900),
            (LedgerMark::DestinationCompleted, 700),
            (LedgerMark::Resume, 1000),
        ];
        let (spans, _) = ledger(LedgerClock::Qemu, &marks).spans().expect("stopped and resumed");
        assert_eq!(spans[1], LedgerSpan { span: "destination-load".to_owned(), ms: 0.0 });
    }

    #[test]
    fn without_stop_or_resume_there_is_no_blackout() {
        assert_eq!(ledger(LedgerClock::Qemu, &[]).spans(), None);
        assert_eq!(ledger(LedgerClock::Qemu, &[(LedgerMark::Stop, 1)]).spans(), None);
        assert_eq!(ledger(LedgerClock::Qemu, &[(LedgerMark::PreSwitchover, 1), (LedgerMark::Resume, 2)]).spans(), None);
    }

    proptest! {
        #[test]
        fn spans_sum_to_the_blackout_whatever_the_stamps(stamps in prop::collection::vec(0u64..1_000_000, 8), engine: bool) {
            let marks: Vec<_> = ORDER.into_iter().zip(stamps).collect();
            let clock = if engine { LedgerClock::Engine } else { LedgerClock::Qemu };
            let (spans, total) = ledger(clock, &marks).spans().expect("stopped and resumed");
            prop_assert!((spans.iter().map(|s| s.ms).sum::<f64>() - total).abs() < 1e-6);
            prop_assert!(spans.iter().all(|s| s.ms >= 0.0));
        }
    }
}

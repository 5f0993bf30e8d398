//! The blackout ledger: where every microsecond between the guest's stop on the source and RESUME on the destination
//! went.
//!
//! The guest's stop is not STOP: QEMU stops the vCPUs, from 9.0 on waits for the guest's I/O, and only then says STOP.
//!
//! Pure. Every span is named after its end, and the spans sum to the blackout by construction.

use super::moment::Moment;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// The resolution of QEMU's own figure, and the time that vCPUs take to stop: a shorter drain is none.
const RESOLUTION: Duration = Duration::from_millis(2);

/// The clock by which a ledger is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LedgerClock {
    /// The engine's monotonic clock when QEMU stamped each event: both processes and the engine share one host.
    Qemu,
    /// The engine's own clock at receipt of each event: right for two hosts, whose clocks differ, and off by the time
    /// that one message is on its way.
    Engine,
}

/// The points between the guest's stop and RESUME, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LedgerMark {
    /// The source has stopped the guest's vCPUs, as far as the engine could tell then.
    VcpusStopped,
    /// STOP on the source: the guest's vCPUs are stopped, and its I/O has ended.
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
    pub(super) const fn span(self) -> &'static str {
        match self {
            Self::VcpusStopped => "vcpus",
            Self::Stop => "drain",
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
    downtime: Option<Duration>,
}

impl BlackoutLedger {
    /// An empty ledger that will read the given clock.
    pub fn new(clock: LedgerClock) -> Self {
        Self { clock, marks: Vec::new(), downtime: None }
    }

    /// The clock by which the ledger is read.
    pub fn clock(&self) -> LedgerClock {
        self.clock
    }

    /// Notes the moment of a mark.
    pub fn mark(&mut self, mark: LedgerMark, moment: Moment) {
        self.marks.push((mark, moment));
    }

    /// Notes QEMU's own figure for the downtime, which begins when QEMU stops the vCPUs and ends when the source has
    /// completed.
    pub fn measure(&mut self, downtime: Duration) {
        self.downtime = Some(downtime);
    }

    /// The time from the vCPUs' stop to STOP; zero where there is nothing to tell.
    ///
    /// QEMU's figure counts where there is one. Without it, as where the guest went back, the engine's own judgement
    /// counts.
    pub fn drain(&self) -> Duration {
        let at = |wanted: LedgerMark| {
            self.marks.iter().find(|(mark, _)| *mark == wanted).map(|&(_, moment)| self.instant(moment))
        };
        let Some(stop) = at(LedgerMark::Stop) else { return Duration::ZERO };
        let drain = match (self.downtime, at(LedgerMark::SourceCompleted)) {
            (Some(downtime), Some(completed)) => downtime.saturating_sub(completed.saturating_duration_since(stop)),
            _ => at(LedgerMark::VcpusStopped).map_or(Duration::ZERO, |begin| stop.saturating_duration_since(begin)),
        };
        if drain > RESOLUTION { drain } else { Duration::ZERO }
    }

    /// The spans from the guest's stop to RESUME and their sum in milliseconds; `None` where the guest did not stop and
    /// resume.
    ///
    /// The time of a missing mark falls to the next span. A mark that is stamped before its predecessor (the
    /// destination can complete first) gets a span of zero.
    pub fn spans(&self) -> Option<(Vec<LedgerSpan>, f64)> {
        let told = self.marks.iter().filter(|(mark, _)| *mark != LedgerMark::VcpusStopped);
        let mut marks: Vec<(LedgerMark, u64)> = told.map(|&(mark, moment)| (mark, self.micros(moment))).collect();
        marks.sort_by_key(|&(mark, _)| mark);
        let (&(first, start), &(last, end)) = (marks.first()?, marks.last()?);
        if first != LedgerMark::Stop || last != LedgerMark::Resume {
            return None;
        }
        let end = end.max(start);
        let drain = u64::try_from(self.drain().as_micros()).unwrap_or(u64::MAX);
        let drained = (drain > 0).then(|| LedgerSpan { span: LedgerMark::Stop.span().to_owned(), ms: millis(drain) });
        let mut at = start;
        let rest = marks[1..].iter().map(|&(mark, micros)| {
            let until = if mark == LedgerMark::Resume { end } else { micros.clamp(at, end) };
            let span = LedgerSpan { span: mark.span().to_owned(), ms: millis(until - at) };
            at = until;
            span
        });
        Some((drained.into_iter().chain(rest).collect(), millis(drain.saturating_add(end - start))))
    }

    fn instant(&self, moment: Moment) -> Instant {
        match self.clock {
            LedgerClock::Qemu => moment.stamped,
            LedgerClock::Engine => moment.local,
        }
    }

    fn micros(&self, moment: Moment) -> u64 {
        // Only differences count, so any common origin will do.
        let origin = self.marks.iter().map(|&(_, moment)| self.instant(moment)).min();
        let since = origin.map_or(Duration::ZERO, |origin| self.instant(moment) - origin);
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
            ledger.mark(mark, Moment::at(origin + since, Duration::from_secs(1_700_000_000)));
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
    fn what_qemu_drained_before_it_said_stop_is_a_part_of_the_blackout() {
        use LedgerMark as M;
        let marks = [(M::Stop, 800_000), (M::SourceCompleted, 815_000), (M::Resume, 820_000)];
        let told = |ledger: &BlackoutLedger| {
            let (spans, total) = ledger.spans().expect("stopped and resumed");
            (spans.first().map(|span| (span.span.clone(), span.ms)), total)
        };
        for clock in [LedgerClock::Qemu, LedgerClock::Engine] {
            let mut measured = ledger(clock, &marks);
            assert_eq!(told(&measured), (Some(("ram-and-devices".to_owned(), 15.0)), 20.0));
            // The source's downtime is 15 ms, and what is beyond its resolution lies before STOP.
            measured.measure(Duration::from_millis(17));
            assert_eq!(told(&measured).1, 20.0);
            measured.measure(Duration::from_millis(803));
            assert_eq!(told(&measured), (Some(("drain".to_owned(), 788.0)), 808.0));
        }
        // A guest that went back has no figure of QEMU's.
        let back = ledger(LedgerClock::Qemu, &[(M::VcpusStopped, 100_000), (M::Stop, 500_000), (M::Resume, 530_000)]);
        assert_eq!(told(&back), (Some(("drain".to_owned(), 400.0)), 430.0));
        assert_eq!(back.drain(), Duration::from_millis(400));
    }

    #[test]
    fn a_clock_that_is_set_meanwhile_changes_nothing() {
        let (origin, mut ledger) = (Instant::now(), BlackoutLedger::new(LedgerClock::Qemu));
        let ms = Duration::from_millis;
        let event = |real: u64, wall: u64| {
            let received = std::time::UNIX_EPOCH + ms(wall + 1);
            Moment::received(origin + ms(real + 1), received, Some(ms(wall)))
        };
        ledger.mark(LedgerMark::Stop, event(10, 1_000_000));
        // The clock is set back by five seconds.
        ledger.mark(LedgerMark::PreSwitchover, event(14, 995_004));
        // The clock is set forward by ten.
        ledger.mark(LedgerMark::Resume, event(24, 1_005_014));
        let (spans, total) = ledger.spans().expect("stopped and resumed");
        assert_eq!((spans[0].ms, total), (4.0, 14.0));
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

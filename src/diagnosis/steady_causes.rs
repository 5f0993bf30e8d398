//! The causes that a watch shows: those of the moment, without the ones that come and go from look to look.
//!
//! Pure. Two looks differ by chance, so a cause is shown once two looks in a row have found it, and taken away once two
//! have not. A grave one is shown at once.

use super::cause::Cause;
use crate::codes::DiagnosisCode;
use std::time::Duration;

/// The causes that are told at the first look: each of them is an answer of QEMU's or of the kernel's, no comparison,
/// and with each of them a minute can matter.
const GRAVE: [DiagnosisCode; 5] = [
    DiagnosisCode::BothRunning,
    DiagnosisCode::SourceGone,
    DiagnosisCode::DestinationGone,
    DiagnosisCode::GuestEnded,
    DiagnosisCode::PostcopyPaused,
];
/// The least time between two looks that count as two.
const APART: Duration = Duration::from_millis(300);
/// The time without a look after which what was shown before is no evidence any more.
const FORGOTTEN: Duration = Duration::from_secs(1);

/// What is shown, and what the last looks say otherwise.
#[derive(Debug, Default)]
pub(super) struct SteadyCauses {
    shown: Vec<Cause>,
    /// The codes about which looks and screen differ, and since when.
    doubted: Vec<(DiagnosisCode, Duration)>,
    last: Option<Duration>,
}

impl SteadyCauses {
    /// Takes in what a look has found, and gives what is to be shown.
    pub(super) fn settle(&mut self, at: Duration, found: Vec<Cause>) -> Vec<Cause> {
        let is_new = self.last.is_none_or(|last| at.saturating_sub(last) > FORGOTTEN);
        self.last = Some(at);
        if is_new {
            self.doubted.clear();
            self.shown = found;
            return self.shown.clone();
        }
        let is_in = |causes: &[Cause], code: DiagnosisCode| causes.iter().any(|cause| cause.code == code);
        let all = found.iter().chain(&self.shown).map(|cause| cause.code);
        let mut doubted: Vec<(DiagnosisCode, Duration)> = Vec::new();
        for code in all.filter(|code| is_in(&found, *code) != is_in(&self.shown, *code)) {
            let since = self.doubted.iter().find(|(doubted, _)| *doubted == code).map_or(at, |(_, since)| *since);
            if !doubted.iter().any(|(doubted, _)| *doubted == code) {
                doubted.push((code, since));
            }
        }
        let is_settled = |code: DiagnosisCode| {
            let since = doubted.iter().find(|(doubted, _)| *doubted == code).map(|(_, since)| *since);
            since.is_none_or(|since| at.saturating_sub(since) >= APART)
        };
        let now: Vec<DiagnosisCode> = found.iter().map(|cause| cause.code).collect();
        let (before, mut shown) = (std::mem::take(&mut self.shown), found);
        shown.retain(|cause| is_in(&before, cause.code) || is_settled(cause.code) || GRAVE.contains(&cause.code));
        for (place, cause) in before.into_iter().enumerate() {
            if !is_in(&shown, cause.code) && !is_settled(cause.code) {
                shown.insert(place.min(shown.len()), cause);
            }
        }
        // what looks and screen agree about by now is doubted no more
        self.doubted = doubted.iter().filter(|(code, _)| now.contains(code) != is_in(&shown, *code)).copied().collect();
        self.shown.clone_from(&shown);
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::{super::cause::Confidence, *};
    use DiagnosisCode::{BothRunning as Two, LinkDead as Dead, MirrorStarved as Slow, NotConverging as Fast};

    /// What is shown after each of these looks, with the time of the first.
    fn shown(looks: &[&[DiagnosisCode]], apart: u64) -> Vec<Vec<DiagnosisCode>> {
        let mut steady = SteadyCauses::default();
        let cause = |code: &DiagnosisCode| Cause::new(*code, Confidence::Likely, vec!["seen".to_owned()]);
        let mut settle = |(number, codes): (u64, &&[DiagnosisCode])| {
            let settled = steady.settle(Duration::from_millis(number * apart), codes.iter().map(cause).collect());
            settled.iter().map(|cause| cause.code).collect()
        };
        (0..).zip(looks).map(&mut settle).collect()
    }

    #[test]
    fn what_comes_and_goes_changes_nothing_until_two_looks_agree() {
        for (looks, expected) in [
            // the first verdict of all
            (vec![&[Dead][..], &[Dead]], vec![&[Dead][..], &[Dead]]),
            // one after the other, in turn
            (vec![&[Dead], &[Fast], &[Dead], &[Fast], &[Dead]], vec![&[Dead], &[Dead], &[Dead], &[Dead], &[Dead]]),
            (vec![&[Dead], &[Fast], &[Fast], &[Fast]], vec![&[Dead], &[Dead], &[Fast], &[Fast]]),
            // with and without
            (vec![&[], &[Fast], &[], &[Fast], &[]], vec![&[], &[], &[], &[], &[]]),
            (
                vec![&[], &[Fast], &[Fast], &[], &[Fast], &[], &[]],
                vec![&[], &[], &[Fast], &[Fast], &[Fast], &[Fast], &[]],
            ),
            // a third one disturbs nothing, and each keeps its place
            (vec![&[Dead, Fast], &[Fast], &[Slow, Fast]], vec![&[Dead, Fast], &[Dead, Fast], &[Fast]]),
            (vec![&[Dead, Fast], &[Dead], &[Dead, Slow, Fast]], vec![&[Dead, Fast], &[Dead, Fast], &[Dead, Fast]]),
            // two runners are told at once, and taken back like anything else
            (vec![&[], &[Two], &[], &[Two], &[], &[]], vec![&[], &[Two], &[Two], &[Two], &[Two], &[]]),
            (vec![&[Fast], &[Two]], vec![&[Fast], &[Fast, Two]]),
        ] {
            assert_eq!(shown(&looks, 400), expected, "{looks:?}");
        }
        // whoever looks rarely is told what is, and looks in quick succession are one
        assert_eq!(shown(&[&[Dead], &[Fast]], 2000), [[Dead], [Fast]]);
        let quick: Vec<_> = shown(&[&[Dead], &[Fast], &[Fast], &[Fast], &[Fast], &[Fast]], 100);
        assert_eq!(quick, [[Dead], [Dead], [Dead], [Dead], [Fast], [Fast]]);
    }
}

//! The judgement of a guest after a fault.
//!
//! The judgement decides from the answers of both QEMUs, the commands sent to them, and the engine's outcome. No query
//! is made from here.

use qferry::internals::progress::{Ending, RunsOn};

use super::engine::Ended;
use super::fault::Fault;
use super::look::{Look, Seen};
use qferry_bed::Side;

/// The place of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    OnSource,
    OnDestination,
    /// The guest rightly runs nowhere, for this reason.
    Nowhere(&'static str),
}

impl Standing {
    /// The place in a few words.
    pub(crate) fn told(self) -> &'static str {
        match self {
            Self::OnSource => "on the source",
            Self::OnDestination => "on the destination",
            Self::Nowhere(why) => why,
        }
    }
}

/// The facts for a judgement.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) fault: Fault,
    /// `cont` was sent to the destination.
    pub(crate) started: bool,
    pub(crate) look: &'a Look,
    pub(crate) ended: &'a Ended,
}

/// The place of the guest, or the error.
pub(crate) fn judge(facts: &Facts<'_>) -> Result<Standing, String> {
    let Facts { fault, look, ended, .. } = facts;
    let said = format!("the engine said {}, on {:?} ({}: {})", ended.ending, ended.runs_on, ended.code, ended.message);
    let claim = |side: RunsOn, endings: &[Ending]| {
        let known = ended.runs_on == side && endings.contains(&ended.ending);
        // The engine cannot know what another engine did meanwhile.
        let unknown = *fault == Fault::SecondEngine && ended.ending == Ending::Undetermined;
        known || unknown
    };
    // A refusal before the first query does not say where the guest is.
    let unlooked = ended.ending == Ending::Refused && ended.runs_on == RunsOn::Unknown;
    match (look.source.runs(), look.destination.runs()) {
        (true, true) => Err(format!("TWO RUNNERS; {said}")),
        (true, false) => {
            let endings = [Ending::RolledBack, Ending::Refused, Ending::Stuck];
            let endings = if fault.blinds() { &endings[..] } else { &endings[..2] };
            match unlooked || claim(RunsOn::Source, endings) {
                true => Ok(Standing::OnSource),
                false => Err(format!("it runs on the source; {said}; {look:?}; left: {:?}", ended.leftovers)),
            }
        }
        (false, true) => match claim(RunsOn::Destination, &[Ending::Moved]) {
            true => Ok(Standing::OnDestination),
            false => Err(format!("it runs on the destination; {said}; {look:?}")),
        },
        (false, false) => {
            let why = justify(facts).map_err(|why| format!("NO RUNNER: {why}; {said}; {look:?}"))?;
            // The guest moved, and was killed on the destination.
            let moved = ended.ending == Ending::Moved && facts.started && look.destination == Seen::Dead;
            // The engine refused because the source was gone.
            let refused = unlooked && !facts.started && *fault == Fault::Killed(Side::Source);
            // The source was killed before the guest was passed on.
            let over = ended.ending == Ending::Ended && ended.runs_on == RunsOn::None && look.source == Seen::Dead;
            match moved || refused || over || ended.ending == Ending::Undetermined {
                true => Ok(Standing::Nowhere(why)),
                false => Err(format!("it runs nowhere; {said}; {look:?}")),
            }
        }
    }
}

/// The reason why it is right that the guest runs nowhere, or why it is not.
fn justify(facts: &Facts<'_>) -> Result<&'static str, &'static str> {
    let Facts { fault, started, look, .. } = facts;
    let has_all = |seen: &Seen| matches!(seen, Seen::Answers { migration, .. } if migration == "completed");
    match (&look.source, &look.destination) {
        (Seen::Silent, _) | (_, Seen::Silent) => Err("a QEMU hangs"),
        (_, Seen::Dead) if *started && *fault == Fault::Killed(Side::Destination) => Ok("killed where it ran"),
        (Seen::Dead, destination) if *fault == Fault::Killed(Side::Source) => match has_all(destination) {
            true => Err("the destination has all of it, and the source is dead"),
            false => Ok("killed where it was"),
        },
        (Seen::Dead, _) => Err("the source was ended"),
        (Seen::Answers { .. }, Seen::Dead) if *started => Ok("it may have run on the destination"),
        (Seen::Answers { .. }, Seen::Dead) => Err("the source has all of it, and the destination is dead"),
        (Seen::Answers { .. }, Seen::Answers { .. }) => Err("both are there and answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(run: &str, migration: &str) -> Seen {
        Seen::Answers { run: run.to_owned(), migration: migration.to_owned() }
    }

    fn ended(ending: Ending, runs_on: RunsOn) -> Ended {
        Ended { ending, runs_on, code: String::new(), message: String::new(), leftovers: Vec::new() }
    }

    #[test]
    fn what_is_right_and_what_is_wrong() {
        let run = || answers("running", "completed");
        let waits = || answers("postmigrate", "completed");
        let loaded = || answers("paused", "completed");
        let back = ended(Ending::RolledBack, RunsOn::Source);
        let moved = ended(Ending::Moved, RunsOn::Destination);
        let unknown = ended(Ending::Undetermined, RunsOn::Unknown);
        let stuck = ended(Ending::Stuck, RunsOn::Source);
        let gone = Fault::Killed(Side::Destination);
        let dead = Fault::Killed(Side::Source);
        let cut = Fault::Cut(Side::Source);
        for (fault, started, source, destination, ended, right) in [
            (gone, false, run(), Seen::Dead, &back, true),
            (gone, false, run(), Seen::Dead, &stuck, false),
            (gone, false, run(), Seen::Dead, &unknown, false),
            (gone, false, run(), Seen::Dead, &moved, false),
            (gone, false, run(), run(), &back, false),
            (gone, false, waits(), Seen::Dead, &unknown, false),
            (gone, true, waits(), Seen::Dead, &unknown, true),
            (gone, true, waits(), Seen::Dead, &back, false),
            (gone, true, Seen::Dead, Seen::Dead, &moved, true),
            (dead, false, Seen::Dead, loaded(), &unknown, false),
            (dead, false, Seen::Dead, run(), &moved, true),
            (dead, false, Seen::Dead, answers("inmigrate", "active"), &unknown, true),
            (dead, false, Seen::Dead, answers("inmigrate", "active"), &back, false),
            (cut, false, answers("finish-migrate", "pre-switchover"), loaded(), &unknown, false),
            (cut, true, waits(), run(), &unknown, false),
            (cut, true, waits(), run(), &moved, true),
            (cut, false, run(), answers("inmigrate", "none"), &stuck, true),
            (cut, true, waits(), run(), &back, false),
            (Fault::NbdHole, false, Seen::Silent, loaded(), &unknown, false),
            (Fault::Frozen, true, waits(), Seen::Dead, &unknown, true),
            (Fault::NbdCut, false, waits(), loaded(), &unknown, false),
            (Fault::EngineKilled, true, waits(), run(), &moved, true),
            (Fault::EngineKilled, true, waits(), run(), &unknown, false),
        ] {
            let look = Look { source, destination };
            let found = judge(&Facts { fault, started, look: &look, ended });
            assert_eq!(found.is_ok(), right, "{fault:?} {look:?} {ended:?}: {found:?}");
        }
    }
}

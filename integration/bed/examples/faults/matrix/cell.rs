//! One fault at one point: the migration with the fault, and the next one.

use std::fs;
use std::time::{Duration, Instant};

use qferry::internals::progress::Ending;
use qferry_bed::{Command, Error, Pair, Result, Side};
use serde_json::json;

use super::attempt::{Attempt, attempt};
use super::engine::Ended;
use super::fault::Fault;
use super::judge::{Facts, Standing, judge};
use super::look::{Seen, WAIT};
use super::point::Point;
use super::stage::Stage;

/// The number of last commands that are told if something is wrong.
const TAIL: usize = 40;

/// The result of a fault at a point.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) fault: Fault,
    pub(crate) point: Point,
    /// The end of the engine, if it ended.
    pub(crate) ended: Option<Ended>,
    /// Whether the engine ended undetermined, so that the rest is the result of a recovery.
    pub(crate) recovered: bool,
    /// The place of the guest, if that is right.
    pub(crate) standing: Option<Standing>,
    /// Whether the fault struck.
    pub(crate) struck: bool,
    /// The longest pause of the guest from the fault on; none if the guest does not run or beat.
    pub(crate) stood: Option<Duration>,
    /// The errors; none is good.
    pub(crate) wrong: Vec<String>,
    pub(crate) took: Duration,
}

/// Tries a fault at a point. With `again`, another migration afterwards must succeed.
pub(crate) fn run(stage: &mut Stage, fault: Fault, point: &Point, again: bool) -> Cell {
    let began = Instant::now();
    let mut cell = Cell {
        fault,
        point: point.clone(),
        ended: None,
        recovered: false,
        standing: None,
        struck: false,
        stood: None,
        wrong: Vec::new(),
        took: Duration::ZERO,
    };
    if let Err(error) = fill_in(&mut cell, stage, again) {
        cell.wrong.push(error.to_string());
    }
    if !cell.wrong.is_empty() {
        stage.abandon();
    }
    cell.took = began.elapsed();
    cell
}

/// The commands of a migration without a fault.
pub(crate) fn clean(stage: &mut Stage) -> Result<Vec<Command>> {
    let qferry = stage.qferry().to_owned();
    let pair = stage.ready(None)?;
    let Attempt { ended, look, tape, .. } = attempt(pair, &qferry, None, true)?;
    let ended = ended.map_err(Error::new)?;
    if ended.ending != Ending::Moved || !look.destination.runs() || look.source.runs() {
        return Err(Error::new(format!("a migration with no fault in it: {ended:?}, {look:?}")));
    }
    is_well(pair, Side::Destination)?;
    nothing_left(pair, &ended)?;
    stage.turn()?;
    Ok(tape)
}

fn fill_in(cell: &mut Cell, stage: &mut Stage, again: bool) -> Result<()> {
    let qferry = stage.qferry().to_owned();
    let pair = stage.ready(Some(cell.fault))?;
    let tried = attempt(pair, &qferry, Some((cell.fault, &cell.point)), true)?;
    (cell.struck, cell.recovered) = (tried.struck.is_some(), tried.recovered);
    let ended = tried.ended.map_err(|error| Error::new(format!("{error}; {:?}", tried.look)))?;
    cell.ended = Some(ended.clone());
    if !cell.struck && !matches!(cell.point, Point::Moment(_)) {
        return Err(Error::new(format!("the point was not reached: {ended:?}")));
    }
    let starts = |command: &Command| command.side == Side::Destination && command.name == "cont";
    let started = tried.tape.iter().any(starts);
    let judged = judge(&Facts { fault: cell.fault, started, look: &tried.look, ended: &ended });
    let last_words = |wrong| {
        let [source, destination] = [&pair.source, &pair.destination].map(|machine| machine.stderr());
        // A QEMU that hangs has been found out before, and is not asked again.
        let jobs = match tried.look.source {
            Seen::Answers { .. } => pair.source.qmp("query-block-jobs", &json!({})).ok(),
            _ => None,
        };
        let jobs = jobs.map_or_else(String::new, |jobs| jobs.to_string());
        let tail = tried.tape.iter().skip(tried.tape.len().saturating_sub(TAIL));
        let tail: Vec<String> = tail.map(|command| format!("{}: {}", command.side, command.name)).collect();
        Error::new(format!(
            "{wrong}; the source's stderr: {source:?}; the destination's: {destination:?}; \
             the source's jobs: {jobs}; the last commands: {tail:?}"
        ))
    };
    let standing = judged.map_err(last_words)?;
    // A guest that came from a 7.2 may panic (see `Pair::errors`), so each serves once.
    let serves_once = cell.fault.needs_own_source() || pair.spec().version == "7.2";
    cell.standing = Some(standing);
    match standing {
        Standing::OnSource | Standing::OnDestination => {
            let side = if standing == Standing::OnSource { Side::Source } else { Side::Destination };
            is_well(pair, side)?;
            cell.stood = tried.struck.and_then(|struck| stood(pair, struck));
            if !matches!(ended.ending, Ending::Undetermined | Ending::Stuck) {
                nothing_left(pair, &ended)?;
            }
            if side == Side::Destination {
                stage.turn()?;
            }
            if serves_once {
                return stage.retire();
            }
            if again {
                clean(stage).map_err(|error| Error::new(format!("the migration after it: {error}")))?;
            }
            Ok(())
        }
        Standing::Nowhere(_) => stage.bury(if started { Side::Destination } else { Side::Source }),
    }
}

/// The guest runs on a side, and finds all of its writes and its memory.
fn is_well(pair: &Pair, side: Side) -> Result<()> {
    // A guest that came from a 7.2 may have lost a timer, so its disks are read offline.
    if !pair.spec().quick && pair.spec().version != "7.2" {
        pair.wait_for_beats(side, 10, WAIT)?;
        pair.wait_until_verified(WAIT)?;
    }
    let errors = pair.errors();
    if errors.is_empty() { Ok(()) } else { Err(Error::new(format!("the guest found: {errors:?}"))) }
}

/// Nothing of the engine is left in a QEMU or in its folder.
fn nothing_left(pair: &Pair, ended: &Ended) -> Result<()> {
    let mut left = Vec::new();
    for machine in [&pair.source, &pair.destination] {
        let is_there = machine.alive()? && (machine.side() == Side::Destination || ended.ending != Ending::Moved);
        // A QEMU that was told to quit may end at any moment.
        if let Some(found) = is_there
            .then(|| machine.leftovers())
            .transpose()
            .or_else(|error| if machine.wait_for_end(WAIT).is_ok() { Ok(None) } else { Err(error) })?
        {
            // A QEMU that was frozen until the engine ended may or may not carry out its last commands.
            let is_told = |what: &String| {
                let settings = what.starts_with("capability") || what.starts_with("parameter");
                settings && ended.says_left(machine.side(), "migration capabilities and parameters")
            };
            left.extend(
                found.into_iter().filter(|what| !is_told(what)).map(|what| format!("{}: {what}", machine.side())),
            );
        }
    }
    // The state directory stays, and holds no link to a journal; the transcripts in the directory are for people.
    let is_empty = |name: &str| {
        let entries = fs::read_dir(pair.run_dir().join(name));
        entries.is_ok_and(|entries| entries.flatten().all(|entry| entry.file_name() == "transcripts"))
    };
    let kept = |name: &str| {
        ["journal", "migrate.", "recover."].iter().any(|begin| name.starts_with(begin))
            || (name == "qferry" && is_empty(name))
    };
    let entries = fs::read_dir(pair.run_dir()).map_err(|error| Error::new(error.to_string()))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    left.extend(names.filter(|name| !kept(name)).map(|name| format!("file {name}")));
    if left.is_empty() { Ok(()) } else { Err(Error::new(format!("left behind: {left:?}; {ended:?}"))) }
}

/// The longest time without a beat from a moment on.
fn stood(pair: &Pair, from: Instant) -> Option<Duration> {
    let mut beats: Vec<Instant> =
        [Side::Source, Side::Destination].iter().flat_map(|side| pair.beats(*side)).map(|beat| beat.at).collect();
    beats.retain(|at| *at >= from);
    beats.sort_unstable();
    let after: Vec<Instant> = std::iter::once(from).chain(beats).collect();
    after.windows(2).map(|pair| pair[1] - pair[0]).max()
}

//! Faults at every point of a migration: `faults QFERRY [OPTIONS] [FAULT [POINT]]`, with the path of the command; see
//! `scripts/faults`.
//!
//! The program fails if a guest runs twice, or nowhere without need, has lost something, or if the engine tells
//! otherwise.

mod chaos;
mod matrix;
mod table;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chaos::Chaos;
use matrix::{CORE, Cell, Fault, PHASES, Point, Soak, Stage, clean, run, soak, switchover};
use qferry_bed::{Error, Result};

/// The version for the whole matrix; on others only the core is tried.
const WHOLE: &str = "10.0.13";
const MIGRATIONS: usize = 200;
/// The time that an attacker has where nobody says how long.
const ATTACKS: Duration = Duration::from_secs(600);
/// The page of results.
const PAGE: &str = "docs/faults.md";
const SOAKS: Duration = Duration::from_secs(570);

/// The arguments of the command.
struct Asked {
    qferry: PathBuf,
    version: String,
    soak: bool,
    /// Whether an attacker is at work.
    chaos: bool,
    only: Option<u64>,
    minutes: Option<u64>,
    core: bool,
    write: bool,
    lanes: usize,
    seed: u64,
    migrations: Option<usize>,
    fault: Option<String>,
    point: Option<String>,
}

fn main() -> ExitCode {
    let right = Asked::read().and_then(|asked| match (asked.soak, asked.chaos) {
        (true, _) => soaked(&asked),
        (_, true) => attacked(&asked),
        _ => tried(&asked),
    });
    match right {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("faults: {error}");
            ExitCode::from(2)
        }
    }
}

impl Asked {
    fn read() -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut asked = Self {
            qferry: PathBuf::new(),
            version: WHOLE.to_owned(),
            soak: false,
            chaos: false,
            only: None,
            minutes: None,
            core: false,
            write: false,
            lanes: 2,
            seed: now.as_secs(),
            migrations: None,
            fault: None,
            point: None,
        };
        let mut words = env::args().skip(1);
        asked.qferry = words.next().ok_or_else(usage)?.into();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(usage);
            let number = |text: String| text.parse().map_err(|_| usage());
            match word.as_str() {
                "--soak" => asked.soak = true,
                "--chaos" => (asked.chaos, asked.seed) = (true, number(value()?)?),
                "--only" => asked.only = Some(number(value()?)?),
                "--minutes" => asked.minutes = Some(number(value()?)?),
                "--core" => asked.core = true,
                "--write" => asked.write = true,
                "--version" => asked.version = value()?,
                "--seed" => asked.seed = number(value()?)?,
                "--lanes" => asked.lanes = number(value()?)?.max(1) as usize,
                "--migrations" => asked.migrations = Some(number(value()?)? as usize),
                option if option.starts_with('-') => return Err(usage()),
                _ if asked.fault.is_none() => asked.fault = Some(word),
                _ if asked.point.is_none() => asked.point = Some(word),
                _ => return Err(usage()),
            }
        }
        asked.core |= asked.version != WHOLE;
        Ok(asked)
    }

    /// Whether a cell is asked for, by names or parts of them.
    fn wants(&self, fault: Fault, point: &Point) -> bool {
        let (fault_fits, point_fits) = (&self.fault, &self.point);
        let point = point.to_string();
        let fits = fault_fits.as_ref().is_none_or(|name| fault.name() == name)
            && point_fits.as_ref().is_none_or(|name| point.contains(name.as_str()));
        fits && (!self.core || CORE.iter().any(|(core, at)| *core == fault && *at == point))
    }
}

fn usage() -> Error {
    let faults = Fault::ALL.map(Fault::name).join(" ");
    Error::new(format!(
        "usage: faults QFERRY [--version V] [--core] [--lanes N] [--write] [FAULT [POINT]]\n       \
         faults QFERRY --soak [--seed N] [--migrations N] [--version V] [--lanes N]\n       \
         faults QFERRY --chaos SEED [--minutes N] [--migrations N] [--only N] [--version V] [--lanes N] [--write]\n\
         faults: {faults}"
    ))
}

/// Tries the matrix, or the part of it that was asked for.
fn tried(asked: &Asked) -> Result<bool> {
    if asked.fault.as_ref().is_some_and(|name| !Fault::ALL.iter().any(|fault| fault.name() == name)) {
        return Err(usage());
    }
    let began = Instant::now();
    // The points come from a migration that went well, so that they follow the engine as it is now.
    let mut first = Stage::new(&asked.qferry, &asked.version);
    let seen = clean(&mut first)?;
    let points: Vec<Point> = PHASES.map(Point::Phase).into_iter().chain(switchover(&seen)).collect();
    let cells: Vec<(Fault, Point)> = Fault::ALL
        .into_iter()
        .flat_map(|fault| points.iter().map(move |point| (fault, point.clone())))
        .filter(|(fault, point)| asked.wants(*fault, point) && fault.left_out(point).is_none())
        .collect();
    if cells.is_empty() {
        let names: Vec<String> = points.iter().map(ToString::to_string).collect();
        return Err(Error::new(format!("no such cell; the points are: {}", names.join(", "))));
    }
    println!("{} cells on QEMU {}, {} guests at once\n", cells.len(), asked.version, asked.lanes);
    let (next, done, retired) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let stages = std::iter::once(first).chain((1..asked.lanes).map(|_| Stage::new(&asked.qferry, &asked.version)));
    let lane = |mut stage: Stage| {
        while let Some((fault, point)) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
            let cell = run(&mut stage, *fault, point, true);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            table::tell(&cell);
            done.push(cell);
        }
        if let Err(error) = stage.retire() {
            retired.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
        }
    };
    let lane = &lane;
    thread::scope(|scope| {
        for stage in stages {
            scope.spawn(move || lane(stage));
        }
    });
    let (done, retired): (Vec<Cell>, Vec<String>) = (
        done.into_inner().unwrap_or_else(PoisonError::into_inner),
        retired.into_inner().unwrap_or_else(PoisonError::into_inner),
    );
    for error in &retired {
        println!("at the end, read offline: {error}");
    }
    let wrong = done.iter().filter(|cell| !cell.wrong.is_empty()).count() + retired.len();
    println!("{} cells, {wrong} wrong, {:.0} s", done.len(), began.elapsed().as_secs_f64());
    if asked.write {
        let text = table::page(&asked.version, &points, &done);
        // The section that an attacker made stays.
        let kept = read_page().unwrap_or_default();
        write_page(&chaos::kept(&kept).map_or(text.clone(), |section| chaos::put(&text, section)))?;
    }
    Ok(wrong == 0)
}

/// Migrates there and back, with faults at random.
fn soaked(asked: &Asked) -> Result<bool> {
    let migrations = asked.migrations.unwrap_or(MIGRATIONS);
    println!("QEMU {}, seed {}, {migrations} migrations", asked.version, asked.seed);
    let began = Instant::now();
    let tally = soak(
        &Soak {
            qferry: &asked.qferry,
            version: &asked.version,
            seed: asked.seed,
            migrations,
            limit: SOAKS,
            lanes: asked.lanes,
            without: &[],
        },
        &|number, cell| {
            print!("{number:>4} ");
            table::tell(cell);
        },
    );
    for wrong in &tally.wrong {
        println!("WRONG: {wrong}");
    }
    println!(
        "{} migrations in {:.0} s, seed {}: {} moved, {} rolled back, {} died with their QEMU; {} faults struck; \
         the longest that a guest stood still: {} ms; {} wrong",
        tally.migrations,
        began.elapsed().as_secs_f64(),
        asked.seed,
        tally.moved,
        tally.back,
        tally.nowhere,
        tally.struck,
        tally.stood.as_millis(),
        tally.wrong.len()
    );
    Ok(tally.wrong.is_empty() && tally.migrations >= migrations)
}

/// Lets an attacker loose.
fn attacked(asked: &Asked) -> Result<bool> {
    let limit = asked.minutes.map(|minutes| Duration::from_secs(minutes * 60));
    let (limit, migrations) = match (limit, asked.migrations, asked.only) {
        (_, _, Some(_)) => (ATTACKS, 1),
        (Some(limit), migrations, _) => (limit, migrations.map_or(u64::MAX, |migrations| migrations as u64)),
        (None, Some(migrations), _) => (Duration::MAX, migrations as u64),
        (None, None, _) => (ATTACKS, u64::MAX),
    };
    println!("QEMU {}, seed {}", asked.version, asked.seed);
    let began = Instant::now();
    let verdicts = chaos::attack(&Chaos {
        qferry: &asked.qferry,
        version: &asked.version,
        seed: asked.seed,
        migrations,
        limit,
        lanes: asked.lanes,
        only: asked.only,
    });
    let (took, wrong) =
        (began.elapsed().as_secs(), verdicts.iter().filter(|verdict| !verdict.wrong.is_empty()).count());
    println!("\n{}", chaos::table(&verdicts));
    println!("{} migrations in {took} s, seed {}: {wrong} wrong", verdicts.len(), asked.seed);
    if asked.write {
        let words: Vec<String> = env::args().skip(2).filter(|word| word != "--write").collect();
        let command = format!("scripts/faults {}", words.join(" "));
        write_page(&chaos::put(&read_page()?, &chaos::section(&command, &asked.version, took, &verdicts)))?;
    }
    Ok(wrong == 0)
}

fn read_page() -> Result<String> {
    std::fs::read_to_string(PAGE).map_err(|error| Error::new(format!("{PAGE}: {error}")))
}

fn write_page(text: &str) -> Result<()> {
    std::fs::write(PAGE, text).map_err(|error| Error::new(format!("{PAGE}: {error}")))
}

//! One migration with a fault in it, and a look at both QEMUs when the engine has ended.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use qferry::internals::endpoint::Address;
use qferry::internals::migration::{JournalPlace, Settings};
use qferry::internals::progress::Ending;
use qferry::internals::storage::verify::identity::ProofLevel;
use qferry_bed::{ChannelProxy, Command, Deed, Error, MonitorProxy, Pair, Proxies, Result, Side, Tape};

use super::engine::{self, Ended, Reach, Told, wait_for_go};
use super::fault::Fault;
use super::look::Look;
use super::point::Point;
use super::program::{Migrating, Program};

/// The limit for an engine in all: longer than all its own deadlines together.
const LIMIT: Duration = Duration::from_secs(150);
/// The time for which a destination is frozen before it is thawed.
const FROZEN: Duration = Duration::from_secs(1);
/// The time in which a QEMU that could not act shows what it does now that it can.
const SETTLES: Duration = Duration::from_millis(500);
/// The blackout budget, so large that no busy machine makes the engine roll back.
pub(super) const BUDGET: Duration = Duration::from_secs(3);
/// The limit for a second engine while a command of the first is held.
const BETWEEN: Duration = Duration::from_secs(3);

/// The result of a migration with a fault.
pub(crate) struct Attempt {
    /// Whether the engine ended undetermined, so that the rest is the result of a recovery from its journal.
    pub(crate) recovered: bool,
    /// The end of the engine, or an error if that was not as it must be.
    pub(crate) ended: std::result::Result<Ended, String>,
    /// The time at which the fault struck.
    pub(crate) struck: Option<Instant>,
    pub(crate) tape: Vec<Command>,
    pub(crate) look: Look,
}

/// The proxies between the engine and the pair.
struct Scene<'a> {
    pair: &'a Pair,
    folder: PathBuf,
    tape: Tape,
    monitors: [MonitorProxy; 2],
    nbd: ChannelProxy,
    ram: ChannelProxy,
}

const SIDES: [Side; 2] = [Side::Source, Side::Destination];

/// The engine, wherever it runs.
enum Engine {
    InProcess(#[allow(dead_code, reason = "it is there to be dropped")] engine::Running),
    Program(Migrating, Box<Program>),
}

/// Migrates, with the fault at the point if there is one. `clean` allows leftovers of an earlier try to be removed.
pub(crate) fn attempt(pair: &Pair, qferry: &Path, fault: Option<(Fault, &Point)>, clean: bool) -> Result<Attempt> {
    let scene = Scene::set(pair)?;
    let (talk, told) = channel();
    let mut phase = None;
    let mut moment = None;
    match fault {
        Some((_, Point::Phase(at))) => phase = Some(*at),
        Some((_, Point::Moment(after))) => moment = Some(Instant::now() + *after),
        Some((fault, point @ Point::Command { side, .. })) => {
            let (talk, point) = (talk.clone(), point.clone());
            let proxy = scene.monitor(*side);
            proxy.rule(move |seen| point.is_reached(seen), move || wait_for_go(&talk), fault.deed());
        }
        None => {}
    }
    let by_program = matches!(fault, Some((Fault::EngineKilled, _)));
    let mut engine = match by_program {
        true => {
            let program = scene.program(qferry)?;
            Engine::Program(program.migrate(phase, talk)?, Box::new(program))
        }
        false => {
            let mut settings = scene.settings("");
            settings.clean = clean;
            if fault.is_some_and(|(fault, _)| fault == Fault::StateRefused) {
                settings.force = ["device-differs", "device-property"].map(str::to_owned).into();
            }
            // An engine that may dial again needs addresses.
            let cut = matches!(fault, Some((Fault::Cut(_) | Fault::ReplyLost, _)));
            let reach = |side: Side| match cut {
                true => Ok(Reach::At(address(&format!("unix:{}", scene.monitor(side).path().display()))?)),
                false => Ok(scene.reach(side)),
            };
            let sides = [reach(Side::Source)?, reach(Side::Destination)?];
            Engine::InProcess(engine::start(sides, settings, phase, talk))
        }
    };

    let deadline = Instant::now() + LIMIT;
    let (mut struck, mut thaw, mut second) = (None, None, None);
    let ended = loop {
        let next = [Some(deadline), thaw, moment].into_iter().flatten().min().unwrap_or(deadline);
        match told.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(Told::Ended(ended)) => break Ok(ended),
            Ok(Told::Broke(error)) => break Err(error),
            Ok(Told::Reached(go)) => {
                let Some((fault, point)) = fault else { continue };
                struck = Some(Instant::now());
                if let Engine::Program(running, program) = &mut engine {
                    running.kill()?;
                    // A proxy that holds a command keeps its end open, which the kernel would have closed.
                    scene.monitors.iter().for_each(MonitorProxy::cut);
                    drop(go);
                    break program.recover_twice(LIMIT);
                }
                second = scene.strike(fault, matches!(point, Point::Command { .. }))?;
                thaw = (fault == Fault::Thawed).then(|| Instant::now() + FROZEN);
                drop(go);
            }
            Err(RecvTimeoutError::Timeout) if moment.is_some_and(|at| at <= Instant::now()) => {
                moment = None;
                let Some((fault, _)) = fault else { continue };
                struck = Some(Instant::now());
                if let Engine::Program(running, program) = &mut engine {
                    running.kill()?;
                    break program.recover_twice(LIMIT);
                }
                // A process that has ended by itself cannot be struck any more.
                second = scene.strike(fault, false).unwrap_or_default();
                thaw = (fault == Fault::Thawed).then(|| Instant::now() + FROZEN);
            }
            Err(RecvTimeoutError::Timeout) if thaw.is_some_and(|at| at <= Instant::now()) => {
                thaw = None;
                scene.thaw()?;
            }
            Err(_) => break Err(format!("the engine has not ended after {LIMIT:?}")),
        }
    };
    drop(engine);
    if let Some(second) = second {
        wait_for_second(&second)?;
    }
    scene.thaw()?;
    if let Some((Fault::Late(_), struck)) = fault.map(|(fault, _)| fault).zip(struck) {
        sleep((struck + Fault::late()).saturating_duration_since(Instant::now()));
    }
    if fault.is_some_and(|(fault, _)| fault.blinds() || fault == Fault::Thawed) {
        sleep(SETTLES);
    }
    // A recovery may find out what the engine could not know.
    let recovered = !by_program && ended.as_ref().is_ok_and(|ended| ended.ending == Ending::Undetermined);
    let ended = if recovered { scene.recover()? } else { ended };
    Ok(Attempt { recovered, ended, struck, tape: scene.tape.commands(), look: Look::at(pair)? })
}

/// Waits for the second engine. Its outcome does not matter, but where the guest is.
fn wait_for_second(told: &Receiver<Told>) -> Result<()> {
    match told.recv_timeout(LIMIT) {
        Ok(Told::Broke(error)) => Err(Error::new(format!("the second engine: {error}"))),
        Ok(_) => Ok(()),
        Err(_) => Err(Error::new(format!("the second engine has not ended after {LIMIT:?}"))),
    }
}

impl<'a> Scene<'a> {
    fn set(pair: &'a Pair) -> Result<Self> {
        let folder = pair.run_dir().with_file_name("channels");
        fs::create_dir_all(&folder).map_err(|error| Error::new(format!("{}: {error}", folder.display())))?;
        let Proxies { monitors, nbd, ram, tape } = Proxies::start(pair, &folder)?;
        Ok(Self { pair, folder, tape, monitors, nbd, ram })
    }

    fn monitor(&self, side: Side) -> &MonitorProxy {
        let [source, destination] = &self.monitors;
        if side == Side::Source { source } else { destination }
    }

    fn unix(&self, name: &str) -> String {
        format!("unix:{}", self.folder.join(name).display())
    }

    /// The settings of an engine. The suffix keeps the sockets of a second one apart, which use no relay.
    fn settings(&self, suffix: &str) -> Settings {
        let address = |name: &str| self.unix(&format!("{name}{suffix}")).parse::<Address>().ok();
        let mut settings = Settings::default();
        settings.runtime_dir = self.pair.run_dir();
        settings.nbd_address = address("nbd");
        settings.migrate_address = address("ram");
        settings.source_nbd_address = address("here");
        settings.downtime = BUDGET;
        settings.journal = JournalPlace::File(self.journal(suffix));
        // The preflight's reading is not tested, and would remove the socket of the relay.
        settings.verify_backing = ProofLevel::Off;
        settings
    }

    /// A side through its proxy, with the process behind it named.
    fn reach(&self, side: Side) -> Reach {
        Reach::Through(self.monitor(side).path().to_owned(), self.pair.machine(side).pid())
    }

    /// The journal of the engine that is tried; none of an earlier one's is left there.
    fn journal(&self, suffix: &str) -> PathBuf {
        let journal = self.pair.run_dir().join(format!("journal{suffix}"));
        drop(fs::remove_file(&journal));
        journal
    }

    fn program(&self, qferry: &Path) -> Result<Program> {
        Ok(Program {
            qferry: qferry.to_owned(),
            monitors: [&self.monitors[0], &self.monitors[1]].map(|proxy| proxy.path().to_owned()),
            channels: ["nbd", "ram", "here"].map(|name| self.unix(name)),
            runtime_dir: self.pair.run_dir(),
            journal: self.journal(""),
        })
    }

    /// Recovers from the engine's journal.
    fn recover(&self) -> Result<std::result::Result<Ended, String>> {
        let mut sides = [None, None];
        for (side, reach) in SIDES.into_iter().zip(&mut sides) {
            *reach = self.pair.machine(side).alive()?.then(|| self.reach(side));
        }
        Ok(engine::recover(&self.pair.run_dir().join("journal"), &sides, LIMIT))
    }

    /// Brings the fault about. `held` tells that the engine waits meanwhile.
    fn strike(&self, fault: Fault, held: bool) -> Result<Option<Receiver<Told>>> {
        match fault {
            Fault::Killed(side) => self.pair.machine(side).kill()?,
            Fault::Frozen | Fault::Thawed => self.pair.destination.stop_process()?,
            Fault::MigrationCut => self.ram.cut(),
            Fault::NbdCut => self.nbd.cut(),
            Fault::NbdHole => self.nbd.black_hole(),
            Fault::Full => fill(&self.pair.destination.folder().join("small/filler"))?,
            Fault::Cut(side) => self.monitor(side).cut(),
            Fault::Late(side) => self.monitor(side).late(Fault::late()),
            Fault::SecondEngine => return self.second_engine(held).map(Some),
            // The destination was made for this fault, or a proxy's rule brings it about, or it has been done.
            Fault::WriteError | Fault::ReadError | Fault::StateRefused | Fault::ReplyLost | Fault::EngineKilled => {
                debug_assert!(fault.deviation().is_some() || fault.deed() != Deed::Pass || fault.needs_own_source());
            }
        }
        Ok(None)
    }

    /// Starts a second engine, over TCP. While the first is held, the second goes as far as it can.
    fn second_engine(&self, held: bool) -> Result<Receiver<Told>> {
        let reach = |side: Side| -> Result<Reach> {
            let port = self.pair.machine(side).qmp_port()?;
            Ok(Reach::At(address(&format!("tcp:127.0.0.1:{port}"))?))
        };
        let sides = [reach(Side::Source)?, reach(Side::Destination)?];
        let (talk, told) = channel();
        let (done, is_done) = channel();
        let running = engine::start(sides, self.settings("-second"), None, talk);
        std::thread::spawn(move || {
            // The second engine is kept until it has ended by itself.
            let _running = running;
            if let Ok(ended) = told.recv() {
                drop(done.send(ended));
            }
        });
        if !held {
            return Ok(is_done);
        }
        let (again, later) = channel();
        match is_done.recv_timeout(BETWEEN) {
            Ok(ended) => drop(again.send(ended)),
            Err(_) => return Ok(is_done),
        }
        Ok(later)
    }

    fn thaw(&self) -> Result<()> {
        match self.pair.destination.alive()? {
            true => self.pair.destination.continue_process(),
            false => Ok(()),
        }
    }
}

/// Fills a file system.
fn fill(path: &Path) -> Result<()> {
    let mut file = fs::File::create(path).map_err(|error| Error::new(format!("{}: {error}", path.display())))?;
    while file.write_all(&[1; 64 << 10]).is_ok() {}
    Ok(())
}

fn address(text: &str) -> Result<Address> {
    text.parse().map_err(|error| Error::new(format!("{text}: {error}")))
}

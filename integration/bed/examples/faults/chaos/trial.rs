//! One migration under attack: the pair, the engine, the attacks at their moments, and what was seen.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use qferry_bed::{Act, BootSector, DiskSpec, Error, Pair, Proxies, Result, Side, Spec, Workload, nth};
use rustix::process::Signal;

use super::attack::{Attack, Clocks};
use super::client::{ARGUMENTS, Client, State, fill, side_of};
use super::engine::{Engine, Migrating, Report, Told};
use super::judge::Seen;
use super::plan::{Plan, Strikes};
use super::rules::starts_a_second_runner;
use super::sampler::{Sample, sample};

const MIB: u64 = 1 << 20;
/// The limit for an engine in all: longer than all its own deadlines together.
const LIMIT: Duration = Duration::from_secs(150);
/// The limit for anything that a QEMU or a guest does on a busy machine.
pub(crate) const WAIT: Duration = Duration::from_secs(120);
/// The time in which a QEMU shows what it does once it can.
const SETTLES: Duration = Duration::from_millis(500);
/// The room of the source's images, in a plan that fills it.
const ROOM: u64 = 24 * MIB;

/// An attack that took place, or was kept back.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) attack: Attack,
    /// The phase of the engine at that time.
    pub(crate) phase: String,
    /// The QEMU before and after, where the attack was a command.
    pub(crate) before: Option<State>,
    pub(crate) after: Option<State>,
    /// QEMU's refusal, or why the attack was kept back; none where the attack was accepted.
    pub(crate) refused: Option<String>,
}

/// Everything that was seen of a migration.
pub(crate) struct Trial {
    pub(crate) pair: Pair,
    pub(crate) clients: [Client; 2],
    pub(crate) done: Vec<Done>,
    pub(crate) report: Report,
    /// The end of the engine, where a recovery followed.
    pub(crate) first: Option<Report>,
    /// The end of a second recovery, where there was a first.
    pub(crate) again: Option<Report>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) source: Seen,
    pub(crate) destination: Seen,
    /// The end of the second engine, and when it was seen.
    pub(crate) second: Option<(Report, Instant)>,
    /// When the first engine had ended.
    pub(crate) ended: Instant,
    /// The phases that the engine began.
    pub(crate) phases: Vec<String>,
    /// The engine's commands, where proxies saw them.
    pub(crate) commands: Vec<String>,
}

/// What an attack needs.
struct Scene<'a> {
    pair: &'a Pair,
    clients: &'a [Client; 2],
    proxies: Option<&'a Proxies>,
    engine: &'a Mutex<Option<Migrating>>,
    phase: &'a Mutex<String>,
    done: &'a Mutex<Vec<Done>>,
    /// The engine that the attacker starts, and its arguments.
    rival: (&'a Engine, Vec<String>),
    second: &'a Mutex<Option<(Report, Instant)>>,
}

/// Carries out a plan.
pub(crate) fn carry_out(plan: &Plan, qferry: &Path, version: &str) -> Result<Trial> {
    let pair = Pair::start(&spec(plan, version))?;
    let folder = pair.run_dir().with_file_name("chaos");
    fs::create_dir_all(&folder).map_err(|error| Error::new(format!("{}: {error}", folder.display())))?;
    let clients = [Client::of(&pair.source, &folder), Client::of(&pair.destination, &folder)];
    clients.iter().try_for_each(|client| client.furnish(&pair))?;
    if !plan.recorded {
        clients.iter().try_for_each(Client::let_reset)?;
        clients[0].wait_for_a_write(WAIT)?;
    }
    if let Some((act, true)) = plan.guest().filter(|(act, _)| plan.recorded || *act != Act::Reset) {
        clients.iter().try_for_each(|client| client.pause_on(act))?;
    }
    let proxies = plan.proxied.then(|| Proxies::start(&pair, &folder)).transpose()?;
    let sets_clock = |attack: &Attack| matches!(attack, Attack::Clock(..));
    let engine = Engine { qferry: qferry.to_owned(), folder: pair.run_dir(), own_clock: plan.has(sets_clock) };
    let rival = Engine { qferry: qferry.to_owned(), folder: folder.join("rival"), own_clock: false };
    fs::create_dir_all(&rival.folder).map_err(|error| Error::new(format!("{}: {error}", rival.folder.display())))?;
    let (talk, told) = channel();
    for (number, strike) in plan.strikes.iter().enumerate() {
        if let (Strikes::Before(side, name), Some(proxies)) = (strike.at, &proxies) {
            let talk = talk.clone();
            let hold = move || {
                let (go, wait) = channel();
                if talk.send(Told::Holds(number, go)).is_ok() {
                    // The end of the channel lets the command go.
                    while wait.recv().is_ok() {}
                }
            };
            proxies.monitors[side as usize].rule(nth(side, name, 1), hold, qferry_bed::Deed::Pass);
        }
    }
    let arguments = arguments(plan, &pair, proxies.as_ref(), &folder);
    let (running, phase, done) = (Mutex::new(None), Mutex::new(String::new()), Mutex::new(Vec::new()));
    let (over, second) = (AtomicBool::new(false), Mutex::new(None));
    let scene = Scene {
        pair: &pair,
        clients: &clients,
        proxies: proxies.as_ref(),
        engine: &running,
        phase: &phase,
        done: &done,
        rival: (&rival, rival_arguments(plan, &pair, &rival)?),
        second: &second,
    };
    let (mut phases, mut first_ended) = (Vec::new(), None);
    let (samples, ended) = thread::scope(|scope| {
        let sampler = scope.spawn(|| sample(&pair, &over));
        let follow = || -> Result<[Option<Report>; 3]> {
            *lock(&running) = Some(engine.migrate(&arguments, talk)?);
            let begun = Instant::now();
            let mut due: Vec<(Instant, usize)> = Vec::new();
            let mut blows = Vec::new();
            let mut strike = |number: usize, go: Option<Sender<()>>| {
                let (scene, attack) = (&scene, plan.strikes[number].attack);
                blows.push(scope.spawn(move || {
                    scene.strike(&attack);
                    drop(go);
                }));
            };
            let report = loop {
                let next = due.iter().map(|(at, _)| *at).min().unwrap_or(begun + LIMIT).min(begun + LIMIT);
                match told.recv_timeout(next.saturating_duration_since(Instant::now())) {
                    Ok(Told::Begins(name)) => {
                        for (number, planned) in plan.strikes.iter().enumerate() {
                            if let Strikes::After(phase, by) = planned.at {
                                if phase == name && !phases.contains(&name) {
                                    due.push((Instant::now() + by, number));
                                }
                            }
                        }
                        phases.push(name.clone());
                        *lock(&phase) = name;
                    }
                    Ok(Told::Holds(number, go)) => strike(number, Some(go)),
                    Ok(Told::Ended(report)) => break report,
                    Err(RecvTimeoutError::Timeout) if begun.elapsed() < LIMIT => {
                        let now = Instant::now();
                        let (ripe, later): (Vec<_>, Vec<_>) = due.into_iter().partition(|(at, _)| *at <= now);
                        due = later;
                        ripe.into_iter().for_each(|(_, number)| strike(number, None));
                    }
                    Err(_) => return Err(Error::new(format!("the engine has not ended after {LIMIT:?}"))),
                }
            };
            first_ended = Some(Instant::now());
            // The rest of each attack, such as the end of a freeze.
            for blow in blows {
                drop(blow.join());
            }
            if plan.has(|attack| matches!(attack, Attack::SlowFlush(..))) {
                [&pair.source, &pair.destination]
                    .iter()
                    .try_for_each(|machine| machine.flush_slowly(Duration::ZERO))?;
            }
            let lives = matches!(pair.source.alive(), Ok(true)) || matches!(pair.destination.alive(), Ok(true));
            sleep(if lives { SETTLES } else { Duration::ZERO });
            let unclear = report.outcome.is_null() && report.code.is_none() || report.ending() == "undetermined";
            if !unclear {
                return Ok([None, Some(report), None]);
            }
            if !engine.journal().exists() {
                // An engine that was killed before its journal has changed nothing, and there is nothing to recover.
                return Ok([Some(report), Some(Report::untouched()), None]);
            }
            let recovered = engine.recover(LIMIT)?;
            let again = engine.recover(LIMIT)?;
            Ok([Some(report), Some(recovered), Some(again)])
        };
        let ended = follow();
        sleep(SETTLES);
        over.store(true, Ordering::Relaxed);
        (sampler.join().unwrap_or_default(), ended)
    });
    drop(running);
    let [first, report, again] = ended?;
    let report = report.unwrap_or_default();
    let commands = proxies.iter().flat_map(|proxies| proxies.tape.commands());
    let commands = commands.map(|command| format!("{}: {}", command.side, command.name)).collect();
    let [source, destination] = [look(&pair, Side::Source, &clients[0]), look(&pair, Side::Destination, &clients[1])];
    let (source, destination) = (source?, destination?);
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let second = second.into_inner().unwrap_or_else(PoisonError::into_inner);
    let ended = first_ended.unwrap_or_else(Instant::now);
    Ok(Trial {
        pair,
        clients,
        done,
        first,
        report,
        again,
        samples,
        source,
        destination,
        second,
        ended,
        phases,
        commands,
    })
}

fn spec(plan: &Plan, version: &str) -> Spec {
    let common = Spec {
        version: version.to_owned(),
        second_monitor: true,
        tcp: plan.has(|attack| *attack == Attack::SecondEngine),
        slow_flush: plan.has(|attack| matches!(attack, Attack::SlowFlush(..))),
        own_clock: plan.has(|attack| matches!(attack, Attack::Clock(..))),
        extra: ARGUMENTS.map(str::to_owned).into(),
        ..Spec::quick()
    };
    if !plan.recorded {
        // A guest that rewrites memory and the same sectors of its disk without an end.
        let acts = |steps: BootSector| match plan.guest() {
            Some((Act::PowerOff, _)) => steps.power_off(),
            Some((Act::Reset, _)) => steps.reset(),
            Some((Act::Panic, _)) => steps.panic(),
            Some((Act::Suspend, _)) => steps.suspend(),
            None => steps,
        };
        let boot = BootSector::new().on_nmi(acts).repeat(|steps| steps.dirty(64).write(4096, 8).wait(1));
        return Spec { boot: Some(boot), ..common };
    }
    let fills = plan.attacks().contains(&Attack::Fill);
    let mut workload =
        Workload { ram: 4 * MIB, dirty: 8 * MIB, write: 100, read: 100, slots: 32, ..Workload::default() };
    let mut disk = DiskSpec::small();
    if fills {
        // A guest that allocates a new cluster with each write, so that a full file system soon matters.
        (disk.size, workload.slots) = (256 * MIB, 2048);
    }
    workload.act = plan.guest().map_or(0, |(act, _)| act as u64);
    let source_room = fills.then_some(ROOM);
    Spec { workload, disks: vec![disk], memory: 128, quick: false, source_room, ..common }
}

fn arguments(plan: &Plan, pair: &Pair, proxies: Option<&Proxies>, folder: &Path) -> Vec<String> {
    let mut all: Vec<String> = ["--downtime", "3s"].map(str::to_owned).into();
    let mut add = |name: &str, value: String| all.extend([name.to_owned(), value]);
    let monitor = |side: Side| match proxies {
        Some(proxies) => proxies.monitors[side as usize].path().display().to_string(),
        None => pair.machine(side).qmp_path().display().to_string(),
    };
    add("--source", monitor(Side::Source));
    add("--destination", monitor(Side::Destination));
    for (option, rate) in [("--disk-bandwidth", plan.disk_rate), ("--bandwidth", plan.rate)] {
        if let Some(rate) = rate {
            add(option, format!("{rate}MiB/s"));
        }
    }
    if proxies.is_some() {
        for (option, name) in [("--nbd-address", "nbd"), ("--migrate-address", "ram"), ("--source-nbd-address", "here")]
        {
            add(option, format!("unix:{}", folder.join(name).display()));
        }
        // The preflight's reading would remove the socket of the relay.
        add("--verify-backing", "off".to_owned());
    }
    all
}

/// The arguments of a second engine, if there is to be one.
fn rival_arguments(plan: &Plan, pair: &Pair, rival: &Engine) -> Result<Vec<String>> {
    let mut all: Vec<String> = ["--downtime", "3s"].map(str::to_owned).into();
    if !plan.has(|attack| *attack == Attack::SecondEngine) {
        return Ok(all);
    }
    for (option, machine) in [("--source", &pair.source), ("--destination", &pair.destination)] {
        all.extend([option.to_owned(), format!("tcp:127.0.0.1:{}", machine.qmp_port()?)]);
    }
    for (option, name) in [("--nbd-address", "nbd"), ("--migrate-address", "ram"), ("--source-nbd-address", "here")] {
        all.extend([option.to_owned(), format!("unix:{}", rival.folder.join(name).display())]);
    }
    if plan.proxied {
        all.extend(["--verify-backing", "off"].map(str::to_owned));
    }
    Ok(all)
}

impl Scene<'_> {
    /// Carries out one attack, and notes what came of it.
    fn strike(&self, attack: &Attack) {
        let phase = lock(self.phase).clone();
        let mut done = Done { attack: *attack, phase, before: None, after: None, refused: None };
        done.refused = match side_of(attack) {
            Some(side) => self.send(attack, &self.clients[side as usize], &mut done).err(),
            None => self.act(attack).err().map(|error| error.to_string()),
        };
        lock(self.done).push(done);
    }

    /// Sends an attack to its QEMU. Whether a QEMU that does not answer has done as it was told is not known, so that
    /// counts as done.
    fn send(&self, attack: &Attack, client: &Client, done: &mut Done) -> std::result::Result<(), String> {
        let before = client.state().map_err(|error| error.to_string())?;
        let is_cont = matches!(attack, Attack::Cont(_));
        let kept_back = is_cont && starts_a_second_runner(client.side(), &before.run, &before.migration);
        done.before = Some(before);
        if kept_back {
            return Err("kept back: nothing could prevent a second runner".to_owned());
        }
        if let Attack::Pause(by) = *attack {
            return self.pause(client, by, done);
        }
        if let Ok(Err(refusal)) = client.carry_out(attack) {
            return Err(refusal.to_string());
        }
        done.after = client.state().ok();
        Ok(())
    }

    fn pause(&self, client: &Client, by: Duration, done: &mut Done) -> std::result::Result<(), String> {
        if let Ok(Err(refusal)) = client.carry_out(&Attack::Stop(Side::Source)) {
            return Err(refusal.to_string());
        }
        sleep(by);
        let Ok(state) = client.state() else { return Ok(()) };
        if starts_a_second_runner(Side::Source, &state.run, &state.migration) {
            done.after = Some(state);
            return Ok(());
        }
        // A `cont` that QEMU refuses leaves the guest stopped.
        drop(client.carry_out(&Attack::Cont(Side::Source)));
        done.after = client.state().ok();
        Ok(())
    }

    fn act(&self, attack: &Attack) -> Result<()> {
        let machine = |side| self.pair.machine(side);
        let no_proxy = || Error::new("no proxy");
        match *attack {
            Attack::EngineStop(by) => {
                self.signal(Signal::STOP)?;
                sleep(by);
                self.signal(Signal::CONT)
            }
            Attack::EngineKill => {
                self.signal(Signal::KILL)?;
                // A proxy that holds a command keeps its end open, which the kernel would have closed.
                for monitor in self.proxies.iter().flat_map(|proxies| &proxies.monitors) {
                    monitor.cut();
                }
                Ok(())
            }
            Attack::EngineInterrupt => self.signal(Signal::INT),
            Attack::MonitorCut(side) => {
                self.proxies.ok_or_else(no_proxy)?.monitors[side as usize].cut();
                Ok(())
            }
            Attack::MonitorLate(side, by) => {
                self.proxies.ok_or_else(no_proxy)?.monitors[side as usize].late(by);
                sleep(by);
                Ok(())
            }
            Attack::RamCut => {
                self.proxies.ok_or_else(no_proxy)?.ram.cut();
                Ok(())
            }
            Attack::NbdCut => {
                self.proxies.ok_or_else(no_proxy)?.nbd.cut();
                Ok(())
            }
            Attack::Kill(side) => match machine(side).alive()? {
                true => machine(side).kill(),
                false => Err(Error::new("it has ended")),
            },
            Attack::Freeze(side, by) => {
                machine(side).stop_process()?;
                sleep(by);
                match machine(side).alive()? {
                    true => machine(side).continue_process(),
                    false => Ok(()),
                }
            }
            Attack::SlowFlush(side, by) => machine(side).flush_slowly(by),
            Attack::Clock(clocks, ahead) => self.set_clocks(clocks, ahead),
            Attack::SecondEngine => self.rival(),
            Attack::Fill => fill(&self.pair.source.folder().join("small").join("filler")),
            _ => Err(Error::new("a command of a QEMU")),
        }
    }

    fn set_clocks(&self, clocks: Clocks, ahead: i64) -> Result<()> {
        let sides: &[Side] = match clocks {
            Clocks::All => &[Side::Source, Side::Destination],
            Clocks::Of(Side::Source) => &[Side::Source],
            Clocks::Of(Side::Destination) => &[Side::Destination],
            Clocks::Engine => &[],
        };
        sides.iter().try_for_each(|side| self.pair.machine(*side).set_clock_ahead(ahead * 1000))?;
        match clocks {
            Clocks::All | Clocks::Engine => lock(self.engine).as_ref().map_or(Ok(()), |engine| engine.set_clock(ahead)),
            Clocks::Of(_) => Ok(()),
        }
    }

    /// Runs the second engine to its end.
    fn rival(&self) -> Result<()> {
        let (engine, arguments) = &self.rival;
        let (talk, told) = channel();
        let running = engine.migrate(arguments, talk)?;
        let begun = Instant::now();
        while let Ok(said) = told.recv_timeout(LIMIT.saturating_sub(begun.elapsed())) {
            if let Told::Ended(report) = said {
                *lock(self.second) = Some((report, Instant::now()));
                return Ok(());
            }
        }
        drop(running);
        *lock(self.second) = Some((Report::default(), Instant::now()));
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match lock(self.engine).as_ref().map(|engine| engine.signal(signal)).transpose()? {
            Some(true) => Ok(()),
            _ => Err(Error::new("the engine has ended")),
        }
    }
}

/// How a QEMU is when all is over.
fn look(pair: &Pair, side: Side, client: &Client) -> Result<Seen> {
    let machine = pair.machine(side);
    if !machine.alive()? {
        return Ok(Seen::Dead);
    }
    match client.state() {
        Ok(state) => Ok(Seen::Answers(state)),
        // The monitor closes a while before the process ends.
        Err(_) if machine.wait_for_end(Duration::from_secs(30)).is_ok() => Ok(Seen::Dead),
        Err(_) => Ok(Seen::Silent),
    }
}

/// Whether the guest itself did its deed, by the events of either side.
pub(crate) fn guest_acted(pair: &Pair, act: Act) -> bool {
    let names: &[&str] = match act {
        Act::PowerOff | Act::Reset => &["SHUTDOWN", "RESET", "POWERDOWN"],
        Act::Panic => &["GUEST_PANICKED"],
        Act::Suspend => &["SUSPEND"],
    };
    let by_guest = |event: &qferry_bed::Event| names.contains(&event.name.as_str()) && event.data["guest"] != false;
    [&pair.source, &pair.destination].iter().any(|machine| machine.events().unwrap_or_default().iter().any(by_guest))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

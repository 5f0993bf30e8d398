//! The handover as a model, explored to its last state: whatever is lost, dies, freezes or comes late, there are never two
//! runners, nothing that a guest did is undone, and whoever gives up had no safe way on.
//!
//! What is modelled: two QEMUs as `docs/handover.md` describes them, their monitors, which serve one client at a time and
//! keep what a frozen process has not read, the RAM channel, the journal, the engine after it has written `Given`, and engines
//! that recover from its journal. Everything the engines conclude is concluded by the library's own
//! [`verdict::decide`], [`Facts::start`] and [`Start::told`]. What is not: postcopy and guests that were paused (tables in
//! `verdict.rs`), and time: a wait may end whenever it likes, so that no result rests on how long anything takes.

#![allow(clippy::unwrap_used, reason = "a test says all it has to say by panicking")]

use qferry::internals::handover::verdict::{self, Facts, Fences, Seen, Start, Verdict};
use qferry::internals::qemu::reply::{MigrationStatus, RunState};
use stateright::{Checker, HasDiscoveries, Model, Property};
use std::{mem::discriminant, time::Instant};

use Side::{Destination, Source};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Side {
    Source,
    Destination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Up,
    /// Its main loop hangs; out of band it answers.
    Hung,
    Frozen,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// The source in `pre-switchover`.
    Waits,
    /// The source in `device`.
    Sends,
    /// Either in `completed`.
    Completed,
    /// Either in `failed`; the source has resumed by then.
    Failed,
    /// The destination in `inmigrate`.
    Loads,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Command {
    Continue,
    ContThere,
    QuitThere,
    Cancel,
    ContHere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Client {
    /// The engine of that number.
    Engine(usize),
    /// The connection is gone. What came over it before may yet be carried out, and is not answered.
    Nobody,
    /// A second migration of the same pair, started elsewhere: its preflight finds that neither side is free and gives up,
    /// and until then nobody else is served.
    Another,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Qemu {
    life: Life,
    phase: Phase,
    runs: bool,
    client: Client,
    inbox: Vec<Command>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Begin,
    /// The journal says so.
    Given,
    /// `migrate-continue` is sent.
    Continued,
    /// Both sides were seen to have completed.
    Arrived,
    LookHere,
    LookThere(Seen),
    Act(Verdict),
    /// For the answer to what the verdict asked for; with what was known of `cont` before.
    Await(Verdict, Start),
    Over(Facts, Verdict),
    Died,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Engine {
    stage: Stage,
    start: Start,
    /// It has followed the source's events since it stood.
    follows: bool,
    /// What it has put out of the way by itself.
    ended_here: bool,
    ended_there: bool,
    rounds: u8,
    recovers: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    source: Qemu,
    destination: Qemu,
    /// The source may have sent everything.
    sent: bool,
    /// The RAM channel is whole.
    channel: bool,
    /// The journal's `Given`; and `Resuming`, written before the source is let go on: the destination is dead by then.
    /// Written any earlier it would be wrong, for the engine may yet turn round and start a destination that comes back.
    given: bool,
    resuming: bool,
    engines: Vec<Engine>,
    recoveries: u8,
    faults: u8,
    ran_here: bool,
    ran_there: bool,
    /// A side began to run after the other one had.
    undone: bool,
    /// An engine has ended a destination that ran.
    killed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Step(usize),
    /// The engine waits no longer.
    Tire(usize),
    Recover,
    /// QEMU carries out what it was sent.
    Deliver(Side),
    Load,
    Complete,
    Fail(Side),
    Thaw(Side),
    Leave(Side),
    // each of these is a fault
    Refuse,
    LoadBadly,
    Freeze(Side),
    Hang,
    Die(Side),
    CutChannel,
    CutMonitor(Side),
    KillEngine(usize),
    /// A second migration takes the monitor that has no client.
    Take(Side),
    /// The fence kills or not, and does not say that it did.
    FenceUnsure(usize, bool),
}

/// What can be known of a side that does not answer, and done about it.
#[derive(Clone, Copy, Debug)]
struct Reach {
    proves_death: bool,
    fence: bool,
}

const LOCAL: Reach = Reach { proves_death: true, fence: true };
const REMOTE: Reach = Reach { proves_death: false, fence: false };
const FENCED: Reach = Reach { proves_death: false, fence: true };

#[derive(Clone, Copy)]
struct Handover {
    decide: fn(&Facts) -> Verdict,
    here: Reach,
    there: Reach,
    /// How many faults there may be in one run.
    faults: u8,
    /// How often it is recovered from the journal.
    recoveries: u8,
    /// The first engine connects anew too.
    reconnects: bool,
    /// The journal's lock keeps a recovery off while the engine lives.
    lock: bool,
    /// A recovery takes from `Given` that the destination may have been started.
    given_counts: bool,
    /// A source that was not followed is taken for one that may have resumed.
    honest: bool,
    /// `Resuming` is written only once the destination is dead.
    resuming_is_proved: bool,
}

const HANDOVER: Handover = Handover {
    decide: verdict::decide,
    here: LOCAL,
    there: LOCAL,
    faults: 4,
    recoveries: 1,
    reconnects: false,
    lock: true,
    given_counts: true,
    honest: true,
    resuming_is_proved: true,
};

impl Engine {
    fn new(stage: Stage, start: Start, recovers: bool) -> Self {
        let (ended_here, ended_there) = (false, false);
        Self { stage, start, follows: !recovers, ended_here, ended_there, rounds: 0, recovers }
    }

    fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over(..) | Stage::Died)
    }
}

impl Qemu {
    fn answer(&self) -> Seen {
        let (run, migration) = match self.phase {
            Phase::Waits => (RunState::FinishMigrate, MigrationStatus::PreSwitchover),
            Phase::Sends => (RunState::FinishMigrate, MigrationStatus::Device),
            Phase::Completed => (RunState::PostMigrate, MigrationStatus::Completed),
            Phase::Failed => (RunState::InMigrate, MigrationStatus::Failed),
            Phase::Loads => (RunState::InMigrate, MigrationStatus::Active),
        };
        Seen::Answers { run: if self.runs { RunState::Running } else { run }, migration }
    }
}

impl World {
    fn qemu(&self, side: Side) -> &Qemu {
        match side {
            Source => &self.source,
            Destination => &self.destination,
        }
    }

    fn qemu_mut(&mut self, side: Side) -> &mut Qemu {
        match side {
            Source => &mut self.source,
            Destination => &mut self.destination,
        }
    }

    fn run_here(&mut self) {
        self.undone |= self.ran_there;
        (self.source.runs, self.ran_here) = (true, true);
    }

    fn run_there(&mut self) {
        self.undone |= self.ran_here;
        (self.destination.runs, self.ran_there) = (true, true);
    }

    fn fail_here(&mut self) {
        self.source.phase = Phase::Failed;
        self.channel = false;
        self.run_here();
    }

    fn die(&mut self, side: Side) {
        let qemu = self.qemu_mut(side);
        (qemu.life, qemu.runs, qemu.client) = (Life::Dead, false, Client::Nobody);
        qemu.inbox.clear();
        self.channel = false;
    }

    fn end(&mut self, side: Side) {
        self.killed |= side == Destination && self.destination.runs;
        self.die(side);
    }

    /// Whether QEMU accepted it.
    fn carry_out(&mut self, command: Command) -> bool {
        match (command, self.source.phase) {
            (Command::Continue, Phase::Waits) => (self.source.phase, self.sent) = (Phase::Sends, true),
            (Command::Cancel, Phase::Waits | Phase::Sends) => self.fail_here(),
            (Command::ContHere, Phase::Completed) => self.run_here(),
            (Command::Cancel, _) | (Command::ContHere, Phase::Failed) => {}
            (Command::QuitThere, _) => self.end(Destination),
            (Command::ContThere, _) if self.destination.phase == Phase::Completed => self.run_there(),
            _ => return false,
        }
        true
    }

    /// Closes the connections of an engine that is no more.
    fn hang_up(&mut self, engine: usize) {
        for side in [Source, Destination] {
            let qemu = self.qemu_mut(side);
            if qemu.client == Client::Engine(engine) {
                qemu.client = Client::Nobody;
            }
        }
    }

    fn send(&mut self, engine: usize, side: Side, command: Command) -> bool {
        let held = self.qemu(side).client == Client::Engine(engine);
        if held {
            self.qemu_mut(side).inbox.push(command);
        }
        held
    }
}

/// To which side a verdict's command goes, where there is one.
fn command(verdict: Verdict) -> Option<(Side, Command)> {
    match verdict {
        Verdict::StartDestination => Some((Destination, Command::ContThere)),
        Verdict::QuitDestination => Some((Destination, Command::QuitThere)),
        Verdict::CancelMigration => Some((Source, Command::Cancel)),
        Verdict::ResumeSource => Some((Source, Command::ContHere)),
        _ => None,
    }
}

impl Handover {
    fn reach(&self, side: Side) -> Reach {
        match side {
            Source => self.here,
            Destination => self.there,
        }
    }

    /// Whether an engine is served, or would be if it connected.
    fn is_served(&self, world: &World, engine: usize, side: Side) -> bool {
        let qemu = world.qemu(side);
        let connects = self.reconnects || world.engines[engine].recovers;
        match qemu.client {
            Client::Engine(client) => client == engine,
            Client::Nobody => connects && qemu.life == Life::Up,
            Client::Another => false,
        }
    }

    /// What an engine sees of a side.
    fn look(&self, world: &World, engine: usize, side: Side) -> Seen {
        let (qemu, own) = (world.qemu(side), &world.engines[engine]);
        let ended = if side == Source { own.ended_here } else { own.ended_there };
        match qemu.life {
            _ if ended => Seen::Dead,
            Life::Dead if self.reach(side).proves_death => Seen::Dead,
            _ if !self.is_served(world, engine, side) => Seen::Silent,
            Life::Up if side == Destination && qemu.phase == Phase::Completed && !qemu.runs => {
                Seen::Answers { run: RunState::Paused, migration: MigrationStatus::Completed }
            }
            Life::Up => qemu.answer(),
            Life::Hung => Seen::Hung,
            Life::Frozen | Life::Dead => Seen::Silent,
        }
    }

    fn facts(&self, world: &World, engine: usize, source: Seen, destination: Seen) -> Facts {
        let own = &world.engines[engine];
        Facts {
            source,
            destination,
            start: own.start,
            was_running: true,
            source_resumed: if own.follows || !self.honest { own.follows && world.ran_here } else { true },
            fences: Fences { source: self.here.fence, destination: self.there.fence },
        }
    }

    /// Connects where it can, and looks.
    fn connect_and_look(&self, world: &mut World, engine: usize, side: Side) -> Seen {
        let seen = self.look(world, engine, side);
        if self.is_served(world, engine, side) && world.qemu(side).client == Client::Nobody {
            let qemu = world.qemu_mut(side);
            // the connection of before is closed, with what was still in it
            qemu.inbox.clear();
            qemu.client = Client::Engine(engine);
        }
        if side == Source && matches!(seen, Seen::Answers { .. }) {
            world.engines[engine].follows = true;
        }
        seen
    }

    /// Whether the engine can go on by itself.
    fn can_step(&self, world: &World, engine: usize) -> bool {
        // answers come in order, so a question waits for what was sent before
        let unread = |side: Side| {
            let qemu = world.qemu(side);
            qemu.client == Client::Engine(engine) && qemu.life == Life::Up && !qemu.inbox.is_empty()
        };
        match world.engines[engine].stage {
            Stage::Begin | Stage::Given | Stage::Arrived | Stage::Act(_) => true,
            Stage::Continued => [Source, Destination].into_iter().all(|side| {
                let qemu = world.qemu(side);
                let heard = qemu.client == Client::Engine(engine) && qemu.life == Life::Up;
                heard && qemu.phase == Phase::Completed
            }),
            Stage::LookHere => !unread(Source),
            Stage::LookThere(_) => !unread(Destination),
            Stage::Await(..) | Stage::Over(..) | Stage::Died => false,
        }
    }

    /// Whether the engine may give up waiting.
    fn can_tire(&self, world: &World, engine: usize) -> bool {
        match world.engines[engine].stage {
            Stage::Continued => true,
            Stage::Await(verdict, _) => command(verdict).is_some_and(|(side, _)| {
                let qemu = world.qemu(side);
                qemu.client != Client::Engine(engine) || qemu.life != Life::Up
            }),
            _ => false,
        }
    }

    fn step(&self, world: &mut World, engine: usize) {
        let stage = world.engines[engine].stage.clone();
        world.engines[engine].stage = match stage {
            Stage::Begin => {
                world.given = true;
                Stage::Given
            }
            Stage::Given if world.send(engine, Source, Command::Continue) => Stage::Continued,
            Stage::Given => Stage::LookHere,
            Stage::Continued => Stage::Arrived,
            Stage::Arrived => self.act(world, engine, Verdict::StartDestination),
            Stage::LookHere => {
                let rounds = &mut world.engines[engine].rounds;
                *rounds = (*rounds + 1).min(ROUNDS + 1);
                Stage::LookThere(self.connect_and_look(world, engine, Source))
            }
            Stage::LookThere(source) => {
                let destination = self.connect_and_look(world, engine, Destination);
                let facts = self.facts(world, engine, source, destination);
                world.engines[engine].start = facts.start();
                match (self.decide)(&facts) {
                    verdict @ (Verdict::OnDestination | Verdict::OnSource | Verdict::Undetermined(_)) => {
                        Stage::Over(facts, verdict)
                    }
                    verdict => Stage::Act(verdict),
                }
            }
            Stage::Act(verdict) => self.act(world, engine, verdict),
            stage @ (Stage::Await(..) | Stage::Over(..) | Stage::Died) => stage,
        };
    }

    fn act(&self, world: &mut World, engine: usize, verdict: Verdict) -> Stage {
        world.resuming |= match verdict {
            Verdict::CancelMigration | Verdict::ResumeSource | Verdict::FreeSource => true,
            Verdict::QuitDestination | Verdict::FenceDestination => !self.resuming_is_proved,
            _ => false,
        };
        if let Some((side, command)) = command(verdict) {
            let before = world.engines[engine].start;
            if !world.send(engine, side, command) {
                return Stage::LookHere;
            }
            if command == Command::ContThere {
                world.engines[engine].start = before.told(false);
            }
            return Stage::Await(verdict, before);
        }
        match verdict {
            Verdict::FenceSource => {
                world.end(Source);
                world.engines[engine].ended_here = true;
            }
            Verdict::FenceDestination => {
                world.end(Destination);
                world.engines[engine].ended_there = true;
            }
            Verdict::FreeSource if world.source.life == Life::Hung && world.source.client == Client::Engine(engine) => {
                world.source.life = Life::Up;
                if world.source.phase != Phase::Completed {
                    world.fail_here();
                }
            }
            _ => {}
        }
        Stage::LookHere
    }

    /// QEMU's answer reaches whoever waits for it.
    fn answer(&self, world: &mut World, client: Client, command: Command, accepted: bool) {
        let Client::Engine(engine) = client else { return };
        let own = &mut world.engines[engine];
        let Stage::Await(verdict, before) = own.stage else { return };
        if self::command(verdict).is_none_or(|(_, awaited)| awaited != command) {
            return;
        }
        match command {
            Command::ContThere if !accepted => own.start = before.told(true),
            Command::QuitThere if accepted => own.ended_there = true,
            _ => {}
        }
        own.stage = Stage::LookHere;
    }

    /// Whether an engine that sees what there is to see had a safe way on: told from what is true, not by the verdict.
    fn has_way_on(&self, world: &World, engine: usize) -> bool {
        let World { source, destination, ran_here, .. } = world;
        let own = &world.engines[engine];
        let served = |side: Side| self.is_served(world, engine, side);
        let answers = |side: Side| world.qemu(side).life == Life::Up && served(side);
        let known_dead = |side: Side| self.look(world, engine, side) == Seen::Dead;
        let (loaded, completed) = (destination.phase == Phase::Completed, source.phase == Phase::Completed);
        // there is nothing left to do but to say so
        if (answers(Destination) && destination.runs) || (answers(Source) && source.runs) {
            return true;
        }
        let unheard = match own.start {
            Start::Never | Start::Refused => true,
            Start::Unknown => (answers(Source) && !completed) || (answers(Destination) && !loaded),
            Start::Sent => false,
        };
        let watched = own.follows && !ran_here;
        let stands = (answers(Source) && completed) || (known_dead(Source) && watched);
        let may_fence = self.here.fence && !answers(Source) && !known_dead(Source) && watched;
        let waits = answers(Destination) && loaded;
        let refused = own.start == Start::Refused;
        let finish = waits && (stands || (may_fence && !refused));
        // a source that hangs is no good reason to give up a destination that has everything
        let lives = answers(Source) || (source.life == Life::Hung && served(Source) && !waits);
        let aside = known_dead(Destination) || answers(Destination) || self.there.fence;
        finish || (unheard && lives && aside)
    }

    /// Whether nothing will move that has not been seen: what was looked at is still so.
    fn is_settled(&self, world: &World, engine: usize, facts: &Facts) -> bool {
        let still =
            |action: &Action| !matches!(action, Action::Deliver(_) | Action::Load | Action::Complete | Action::Fail(_));
        let (here, there) = (self.look(world, engine, Source), self.look(world, engine, Destination));
        let now = Facts { start: facts.start, ..self.facts(world, engine, here, there) };
        let mut actions = Vec::new();
        self.actions(world, &mut actions);
        now == *facts && actions.iter().all(still)
    }
}

impl Model for Handover {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let qemu = |phase| {
            let (life, runs, client, inbox) = (Life::Up, false, Client::Engine(0), Vec::new());
            Qemu { life, phase, runs, client, inbox }
        };
        vec![World {
            source: qemu(Phase::Waits),
            destination: qemu(Phase::Loads),
            sent: false,
            channel: true,
            given: false,
            resuming: false,
            engines: vec![Engine::new(Stage::Begin, Start::Never, false)],
            recoveries: 0,
            faults: 0,
            ran_here: false,
            ran_there: false,
            undone: false,
            killed: false,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let World { source, destination, .. } = world;
        for engine in 0..world.engines.len() {
            if self.can_step(world, engine) {
                actions.push(Action::Step(engine));
            }
            if self.can_tire(world, engine) {
                actions.push(Action::Tire(engine));
            }
        }
        let ended = |engine: &Engine| {
            matches!(engine.stage, Stage::Died | Stage::Over(_, Verdict::Undetermined(_))) || !self.lock
        };
        if world.recoveries < self.recoveries && world.engines.iter().all(ended) {
            actions.push(Action::Recover);
        }
        let (here, there) = (source.life == Life::Up, destination.life == Life::Up);
        let sends = here && source.phase == Phase::Sends;
        let loads = there && destination.phase == Phase::Loads;
        if loads && world.sent {
            actions.push(Action::Load);
        }
        // it waits for the destination's word, which may be lost with the channel
        if sends && destination.phase == Phase::Completed {
            actions.push(Action::Complete);
        }
        if sends && (!world.channel || destination.phase == Phase::Failed) {
            actions.push(Action::Fail(Source));
        }
        if loads && !world.channel {
            actions.push(Action::Fail(Destination));
        }
        let fault = world.faults < self.faults;
        for side in [Source, Destination] {
            let qemu = world.qemu(side);
            if qemu.life == Life::Up && !qemu.inbox.is_empty() {
                actions.push(Action::Deliver(side));
                if fault && side == Destination && qemu.inbox[0] == Command::ContThere {
                    actions.push(Action::Refuse);
                }
            }
            if matches!(qemu.life, Life::Frozen | Life::Hung) {
                actions.push(Action::Thaw(side));
            }
            if qemu.client == Client::Another {
                actions.push(Action::Leave(side));
            }
            if !fault || qemu.life == Life::Dead {
                continue;
            }
            actions.push(Action::Die(side));
            if qemu.life == Life::Up {
                actions.push(Action::Freeze(side));
            }
            match qemu.client {
                Client::Engine(_) => actions.push(Action::CutMonitor(side)),
                Client::Nobody if qemu.life == Life::Up => actions.push(Action::Take(side)),
                Client::Nobody | Client::Another => {}
            }
        }
        if !fault {
            return;
        }
        if here && matches!(source.phase, Phase::Waits | Phase::Sends) {
            actions.push(Action::Hang);
        }
        if loads && world.sent {
            actions.push(Action::LoadBadly);
        }
        if world.channel && (source.phase == Phase::Sends || destination.phase == Phase::Loads) {
            actions.push(Action::CutChannel);
        }
        for (number, engine) in world.engines.iter().enumerate() {
            if !engine.is_over() {
                actions.push(Action::KillEngine(number));
            }
            if matches!(engine.stage, Stage::Act(Verdict::FenceSource | Verdict::FenceDestination)) {
                actions.extend([true, false].map(|kills| Action::FenceUnsure(number, kills)));
            }
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        let fault = matches!(
            action,
            Action::Refuse
                | Action::LoadBadly
                | Action::Freeze(_)
                | Action::Hang
                | Action::Die(_)
                | Action::CutChannel
                | Action::CutMonitor(_)
                | Action::KillEngine(_)
                | Action::Take(_)
                | Action::FenceUnsure(..)
        );
        world.faults += u8::from(fault);
        match action {
            Action::Step(engine) => self.step(&mut world, engine),
            Action::Tire(engine) => world.engines[engine].stage = Stage::LookHere,
            Action::Recover => {
                let start = match (world.resuming, world.given) {
                    (false, true) if self.given_counts => Start::Unknown,
                    _ => Start::Never,
                };
                world.recoveries += 1;
                if self.lock {
                    world.hang_up(0);
                    world.engines.clear();
                }
                let engine = Engine::new(Stage::LookHere, start, true);
                let ended_there = world.resuming && self.resuming_is_proved;
                world.engines.push(Engine { ended_there, ..engine });
            }
            Action::Deliver(side) => {
                let client = world.qemu(side).client;
                let command = world.qemu_mut(side).inbox.remove(0);
                let accepted = world.carry_out(command);
                self.answer(&mut world, client, command, accepted);
            }
            Action::Refuse => {
                let client = world.destination.client;
                let command = world.destination.inbox.remove(0);
                self.answer(&mut world, client, command, false);
            }
            Action::Load => world.destination.phase = Phase::Completed,
            Action::LoadBadly | Action::Fail(Destination) => world.destination.phase = Phase::Failed,
            Action::Complete => world.source.phase = Phase::Completed,
            Action::Fail(Source) => world.fail_here(),
            Action::Thaw(side) => world.qemu_mut(side).life = Life::Up,
            Action::Leave(side) => world.qemu_mut(side).client = Client::Nobody,
            Action::Take(side) => {
                let qemu = world.qemu_mut(side);
                qemu.inbox.clear();
                qemu.client = Client::Another;
            }
            Action::Freeze(side) => world.qemu_mut(side).life = Life::Frozen,
            Action::Hang => world.source.life = Life::Hung,
            Action::Die(side) => world.die(side),
            Action::CutChannel => world.channel = false,
            Action::CutMonitor(side) => {
                if let Client::Engine(engine) = world.qemu(side).client {
                    world.engines[engine].follows &= side != Source;
                }
                world.qemu_mut(side).client = Client::Nobody;
            }
            Action::KillEngine(engine) => {
                world.engines[engine].stage = Stage::Died;
                world.hang_up(engine);
            }
            Action::FenceUnsure(engine, kills) => {
                let source = world.engines[engine].stage == Stage::Act(Verdict::FenceSource);
                world.engines[engine].stage = Stage::LookHere;
                world.resuming |= !source && !self.resuming_is_proved;
                if kills {
                    world.end(if source { Source } else { Destination });
                }
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(TWO, |_, world: &World| !(world.source.runs && world.destination.runs)),
            Property::always(UNDONE, |_, world: &World| !world.undone),
            Property::always(KILLED, |_, world: &World| !world.killed),
            Property::always("what an engine says is true", |_, world: &World| {
                world.engines.iter().all(|engine| match engine.stage {
                    Stage::Over(_, Verdict::OnDestination) => world.ran_there && !world.ran_here,
                    Stage::Over(_, Verdict::OnSource) => world.ran_here && !world.ran_there,
                    _ => true,
                })
            }),
            Property::always("no engine goes round for ever", |_, world: &World| {
                world.engines.iter().all(|engine| engine.rounds <= ROUNDS)
            }),
            Property::always(WAY_ON, |model: &Self, world: &World| {
                world.engines.iter().enumerate().all(|(number, engine)| match &engine.stage {
                    Stage::Over(facts, Verdict::Undetermined(_)) => {
                        !model.has_way_on(world, number) || !model.is_settled(world, number, facts)
                    }
                    _ => true,
                })
            }),
            // none of these is held for nothing
            Property::sometimes("moved", |_, world| came_to(world, Verdict::OnDestination)),
            Property::sometimes("back", |_, world| came_to(world, Verdict::OnSource)),
            Property::sometimes("started", |_, world| came_to(world, Verdict::StartDestination)),
            Property::sometimes("resumed", |_, world| came_to(world, Verdict::ResumeSource)),
            Property::sometimes("cancelled", |_, world| came_to(world, Verdict::CancelMigration)),
            Property::sometimes("quit", |_, world| came_to(world, Verdict::QuitDestination)),
            Property::sometimes("freed", |_, world| came_to(world, Verdict::FreeSource)),
            Property::sometimes("undetermined", |_, world| came_to(world, Verdict::Undetermined(""))),
        ];
        if self.here.fence {
            properties.push(Property::sometimes("source fenced", |_, world| came_to(world, Verdict::FenceSource)));
        }
        if self.there.fence {
            let fenced = |_: &Self, world: &World| came_to(world, Verdict::FenceDestination);
            properties.push(Property::sometimes("destination fenced", fenced));
        }
        properties
    }
}

/// Whether an engine has come to a verdict of this kind.
fn came_to(world: &World, kind: Verdict) -> bool {
    world.engines.iter().any(|engine| match engine.stage {
        Stage::Act(verdict) | Stage::Over(_, verdict) => discriminant(&verdict) == discriminant(&kind),
        _ => false,
    })
}

const TWO: &str = "there are never two runners";
const UNDONE: &str = "nothing that a guest did is undone";
const KILLED: &str = "no destination that runs is ended";
const WAY_ON: &str = "whoever gives up had no safe way on";
/// More than any run needs, so that it is seen where one goes on for ever.
const ROUNDS: u8 = 9;
/// Far more than any exploration meets, each as often as it is met; one that goes on for so long would never end.
const MOST: usize = 2_000_000;

fn explore(what: &str, model: Handover) {
    let began = Instant::now();
    let checker = model.checker().target_state_count(MOST).spawn_bfs().join();
    println!(
        "{what}: {} states of {} met, {:.1?}",
        checker.unique_state_count(),
        checker.state_count(),
        began.elapsed()
    );
    assert!(checker.state_count() < MOST, "{what}: not complete");
    checker.assert_properties();
}

#[test]
fn both_sides_on_this_host() {
    explore("both sides on this host", HANDOVER);
}

#[test]
fn both_sides_elsewhere() {
    explore("both sides elsewhere", Handover { here: REMOTE, there: REMOTE, ..HANDOVER });
}

#[test]
fn both_sides_elsewhere_with_a_fence() {
    explore("both sides elsewhere, with a fence", Handover { here: FENCED, there: FENCED, ..HANDOVER });
}

#[test]
fn a_source_on_this_host_and_a_destination_elsewhere() {
    explore("the destination elsewhere", Handover { there: REMOTE, reconnects: true, ..HANDOVER });
}

#[test]
fn a_second_recovery() {
    explore("recovered twice", Handover { recoveries: 2, reconnects: true, faults: 3, ..HANDOVER });
}

// That the model can fail: each of these takes one thing away.

/// Looks until one of these properties is broken.
#[track_caller]
fn breaks(model: Handover, expected: &[&'static str]) {
    let began = Instant::now();
    let enough = HasDiscoveries::AnyOf(expected.iter().copied().collect());
    let checker = model.checker().finish_when(enough).target_state_count(MOST).spawn_bfs().join();
    let found = expected.iter().any(|name| checker.discovery(name).is_some());
    println!("{} states, {:.1?}", checker.unique_state_count(), began.elapsed());
    assert!(found, "none of {expected:?} was broken");
}

fn resumes_without_proof(facts: &Facts) -> Verdict {
    match (verdict::decide(facts), &facts.destination) {
        (Verdict::Undetermined(_), Seen::Silent) => Verdict::ResumeSource,
        (verdict, _) => verdict,
    }
}

fn starts_without_proof(facts: &Facts) -> Verdict {
    let waits = Seen::Answers { run: RunState::Paused, migration: MigrationStatus::Completed };
    match verdict::decide(facts) {
        Verdict::Undetermined(_) | Verdict::QuitDestination if facts.destination == waits => Verdict::StartDestination,
        verdict => verdict,
    }
}

fn fences_what_may_run(facts: &Facts) -> Verdict {
    match (verdict::decide(facts), &facts.destination) {
        (Verdict::Undetermined(_), Seen::Silent) => Verdict::FenceDestination,
        (verdict, _) => verdict,
    }
}

fn gives_up(facts: &Facts) -> Verdict {
    match verdict::decide(facts) {
        Verdict::StartDestination => Verdict::Undetermined("too hard"),
        verdict => verdict,
    }
}

#[test]
fn a_source_that_is_resumed_without_proof_is_found() {
    breaks(Handover { decide: resumes_without_proof, ..HANDOVER }, &[TWO]);
}

#[test]
fn a_destination_that_is_started_without_proof_is_found() {
    breaks(Handover { decide: starts_without_proof, ..HANDOVER }, &[TWO]);
}

#[test]
fn a_fence_that_hits_a_runner_is_found() {
    breaks(Handover { decide: fences_what_may_run, ..HANDOVER }, &[KILLED]);
}

#[test]
fn an_engine_that_gives_up_too_early_is_found() {
    breaks(Handover { decide: gives_up, ..HANDOVER }, &[WAY_ON]);
}

#[test]
fn a_recovery_that_forgets_what_given_means_is_found() {
    breaks(Handover { given_counts: false, ..HANDOVER }, &[UNDONE]);
}

#[test]
fn a_source_that_ran_while_no_one_looked_is_found() {
    breaks(Handover { honest: false, ..HANDOVER }, &[UNDONE]);
}

#[test]
fn an_intent_to_resume_that_is_written_too_early_is_found() {
    breaks(Handover { resuming_is_proved: false, ..HANDOVER }, &[UNDONE]);
}

#[test]
fn a_recovery_beside_a_living_engine_is_found() {
    breaks(Handover { lock: false, faults: 2, ..HANDOVER }, &[TWO, UNDONE]);
}

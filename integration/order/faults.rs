//! Cancels, and faults at every command: the end is sound wherever one falls.

use super::*;
use crate::golden::golden;

async fn with_faults(shape: &PairShape, faults: &[(Side, usize, CommandFault)]) -> (ModelPair, MigrationRun) {
    let mut model = ModelPair::new(shape);
    model.state().faults = faults.to_vec();
    let run = tokio::time::timeout(Duration::from_secs(3600), model.migrate()).await;
    let run = run.unwrap_or_else(|_| panic!("it never ends: {faults:?} {:#?}", model.log));
    (model, run)
}

const FAULTS: [CommandFault; 8] = [
    CommandFault::Refused,
    CommandFault::Lost,
    CommandFault::Unanswered,
    CommandFault::Dies,
    CommandFault::DiesBefore,
    CommandFault::Closes,
    CommandFault::Mute,
    CommandFault::Cancel,
];

/// The commands to each side in an undisturbed migration.
async fn commands(shape: &PairShape) -> [(Side, Vec<String>); 2] {
    let (_, run) = with_faults(shape, &[]).await;
    [Source, Destination].map(|side| {
        let of_side = |(at, seen): &&(String, fake::ReceivedCommand)| at == side.as_str() && seen.id.is_some();
        (side, run.log.iter().filter(of_side).skip(1).map(|(_, seen)| seen.name.clone()).collect())
    })
}

/// Whether a fault is tried at a command. Questions about the objects of a machine are sent in a row, and a fault at
/// one of them is a fault at each: only the last of a row is tried.
fn is_tried(commands: &[String], number: usize) -> bool {
    let name = &commands[number];
    !name.starts_with("qom-") || commands.get(number + 1) != Some(name)
}

async fn any_one_fault_ends_soundly(shape: PairShape) {
    for (side, commands) in commands(&shape).await {
        let numbers = (0..commands.len()).filter(|number| is_tried(&commands, *number));
        for (number, fault) in numbers.flat_map(|number| FAULTS.map(|fault| (number, fault))) {
            let (model, run) = with_faults(&shape, &[(side, number, fault)]).await;
            let name = nth(&run, side, number);
            sound(&model, &run, &format!("{side} {name} {fault:?} {shape:?}"));
        }
    }
}

// These tests take longest, and run at the same time because each shape is a test of its own.
#[tokio::test(start_paused = true)]
async fn any_one_fault_ends_soundly_with_one_disk() {
    any_one_fault_ends_soundly(PairShape::default()).await;
}

#[tokio::test(start_paused = true)]
async fn any_one_fault_ends_soundly_with_two_disks_and_processes() {
    any_one_fault_ends_soundly(PairShape { processes: true, ..disks(2) }).await;
}

#[tokio::test(start_paused = true)]
async fn any_one_fault_ends_soundly_with_a_paused_guest() {
    let shape = PairShape { guest: "paused", processes: true, exit_on_error: false, ..PairShape::default() };
    any_one_fault_ends_soundly(shape).await;
}

fn nth(run: &MigrationRun, side: Side, number: usize) -> String {
    let mut of_side = run.log.iter().filter(|(at, seen)| at == side.as_str() && seen.id.is_some());
    of_side.nth(number + 1).map_or_else(String::new, |(_, seen)| seen.name.clone())
}

#[tokio::test(start_paused = true)]
async fn any_two_faults_end_soundly() {
    let shape = PairShape { processes: true, ..PairShape::default() };
    let [at_source, at_destination] = commands(&shape).await.map(|(_, commands)| commands.len());
    // The seed is fixed, so that every run tries the same pairs of faults.
    let mut seed: usize = 12345;
    let mut next = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..300 {
        let faults: Vec<_> = (0..2)
            .map(|_| {
                let (side, count) = if next(2) == 0 { (Source, at_source) } else { (Destination, at_destination) };
                // A way back adds commands to those of an undisturbed migration.
                (side, next(count + 10), FAULTS[next(FAULTS.len())])
            })
            .collect();
        let (model, run) = with_faults(&shape, &faults).await;
        sound(&model, &run, &format!("{faults:?}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_comes_in_time_until_the_handover() {
    let shape = disks(2);
    let golden = golden(&shape);
    let handover = golden.iter().position(|line| line == "source: migrate-continue").unwrap();
    for (number, line) in golden.iter().enumerate() {
        let (side, command) = line.split_once(": ").unwrap();
        let side = if side == "source" { Source } else { Destination };
        let mut model = ModelPair::new(&shape);
        let migration = model.builder().start_here().unwrap();
        let control = migration.control();
        let command: &'static str = command.to_owned().leak();
        model.when(side, command, move || {
            control.cancel();
            control.cancel();
        });
        let run = model.follow(migration).await;
        // The hook acts at the first command of this name.
        let first = golden.iter().position(|other| other == line).unwrap();
        if first < handover {
            back(&model, &run, Ending::Cancelled, "cancelled");
        } else {
            moved(&model, &run);
        }
        sound(&model, &run, &format!("{number} {line}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_before_anything_is_changed_changes_nothing() {
    for command in ["query-qmp-schema", "query-status", "query-block-exports"] {
        let mut model = model();
        let migration = cancel_at(&mut model, Destination, command);
        let run = model.follow(migration).await;
        assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Cancelled, RunsOn::Source), "{run:?}");
        assert!(asks_only(&run.log), "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handle_that_is_dropped_cancels() {
    for (side, command) in [(Source, "drive-mirror"), (Source, "migrate"), (Source, "block-job-cancel")] {
        let mut model = model();
        let migration = model.builder().start_here().unwrap();
        let mut stream = migration.events();
        model.when(side, command, move || drop(migration));
        let mut events = Vec::new();
        while let Some(event) = stream.next().await {
            events.push(event);
        }
        let Some(EventKind::Outcome(outcome)) = events.last().map(|event| event.kind.clone()) else {
            panic!("{events:#?}");
        };
        let run = model.told(*outcome, events);
        back(&model, &run, Ending::Cancelled, "cancelled");
        sound(&model, &run, command);
    }
}

#[tokio::test(start_paused = true)]
async fn the_timeout_rolls_back_what_does_not_converge() {
    let mut model = model();
    model.state().converges = false;
    // The policy gives up later than the timeout.
    let patient: Policy = "give-up = '1h'".parse().unwrap();
    let migration = model.builder().policy(patient).timeout(Duration::from_secs(60)).start_here().unwrap();
    let run = model.follow(migration).await;
    back(&model, &run, Ending::RolledBack, "timeout");
}

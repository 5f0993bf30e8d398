//! Somebody else changes a machine, or its migration, while the engine is at work.
//!
//! Promise: own-settings.

use super::*;
use std::sync::{Arc, Mutex};

/// The answers to a command, by the number of the question from 1; the model's own where `answer` has none.
fn answers(
    model: &ModelPair,
    side: Side,
    command: &'static str,
    answer: impl Fn(usize, &mut PairState) -> Option<AnswerStep> + Send + 'static,
) {
    let (shared, mut asked) = (model.shared.clone(), 0);
    model.on(side, command, move |seen| {
        asked += 1;
        let other = answer(asked, &mut shared.state());
        other.map_or_else(|| shared.answer(side, seen), |step| vec![step])
    });
}

/// Lets a test act once the disks are copied.
fn when_copied(model: &ModelPair, act: impl FnOnce(&mut PairState) + Send + 'static) {
    let shared = model.shared.clone();
    model.when(Source, "block-job-set-speed", move || act(&mut shared.state()));
}

/// A capability is switched off: before the first question that is asked of it, or between the questions.
#[tokio::test(start_paused = true)]
async fn a_capability_that_another_client_switches_off_leads_back() {
    for (number, cancelled) in [(1, None), (2, Some(0)), (3, Some(1))] {
        let mut model = model();
        answers(&model, Source, "query-migrate-capabilities", move |asked, state| {
            if asked == number {
                state.source.capabilities.insert("pause-before-switchover".to_owned(), false);
            }
            None
        });
        let run = model.migrate().await;
        match cancelled {
            // what is changed before it is set does not matter
            None => moved(&model, &run),
            Some(cancelled) => {
                back(&model, &run, Ending::RolledBack, "settings-changed");
                assert!(run.message().contains("pause-before-switchover was set on and is off"), "{run:?}");
                assert_eq!((run.count("source: migrate"), run.count("source: migrate_cancel")), (cancelled, cancelled));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_parameter_that_another_client_changes_leads_back() {
    let mut model = model();
    answers(&model, Source, "query-migrate-parameters", |asked, state| {
        if asked == 2 {
            state.source.parameters.insert("max-bandwidth".to_owned(), json!(1));
        }
        None
    });
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "settings-changed");
    assert!(run.message().contains("max-bandwidth was set to"), "{run:?}");
    assert_eq!(run.count("source: migrate"), 0, "{run:?}");
}

/// While disks are copied, neither side has a setting of the engine.
#[tokio::test(start_paused = true)]
async fn a_migration_of_somebody_else_meets_no_setting_of_the_engine_while_disks_are_copied() {
    let mut model = model();
    let found = Arc::new(Mutex::new(None));
    let noted = found.clone();
    when_copied(&model, move |state| {
        let settings = (state.source.capabilities.clone(), state.source.parameters.clone());
        *noted.lock().unwrap() = Some((settings, state.destination.capabilities.clone()));
    });
    let fresh = self::model();
    let (fresh_source, fresh_destination) = {
        let state = fresh.state();
        let settings = (state.source.capabilities.clone(), state.source.parameters.clone());
        (settings, state.destination.capabilities.clone())
    };
    let run = model.migrate().await;
    moved(&model, &run);
    assert_eq!(*found.lock().unwrap(), Some((fresh_source, fresh_destination)), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_migration_of_somebody_else_is_neither_cancelled_nor_taken_for_the_engines() {
    // under way when the disks are copied
    let mut model = model();
    when_copied(&model, |state| state.enter(Source, "active"));
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "migration-under-way");
    assert_eq!(model.state().source.migration.as_deref(), Some("active"), "{run:?}");
    assert_eq!((run.count("source: migrate_cancel"), run.count("destination: quit")), (0, 0), "{run:?}");

    // begun while nothing would end the copy of a disk
    let mut model = self::model();
    model.state().added_share = 1.0;
    let shared = model.shared.clone();
    model.when(Source, "block-dirty-bitmap-remove", move || shared.state().enter(Source, "active"));
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "migration-under-way");
    assert_eq!(
        (run.count("source: migrate_cancel"), run.count("source: block-job-change")),
        (0, 0),
        "at once: {run:?}"
    );

    // begun after the last look
    let mut model = self::model();
    let shared = model.shared.clone();
    model.on(Source, "migrate", move |_| {
        shared.state().enter(Source, "setup");
        vec![AnswerStep::error("There's a migration process in progress")]
    });
    let run = model.migrate().await;
    assert_eq!((run.code(), run.outcome.runs_on), ("migration-under-way", RunsOn::Source), "{run:?}");
    assert_eq!(run.count("source: migrate_cancel"), 0, "{run:?}");
    // QEMU lets nobody change capabilities meanwhile, so they cannot be put back
    assert_eq!(run.outcome.outcome, Ending::Stuck, "{run:?}");
    assert!(run.outcome.leftovers.iter().all(|left| left.contains("capabilities")), "{run:?}");

    // completed: the source stands in `postmigrate` by it, and that is left so
    for after_the_last_look in [false, true] {
        let mut model = self::model();
        let complete = |state: &mut PairState| {
            for status in ["setup", "active", "completed"] {
                state.enter(Source, status);
            }
            state.source.run = "postmigrate".to_owned();
        };
        if after_the_last_look {
            let shared = model.shared.clone();
            model.when(Source, "migrate", move || complete(&mut shared.state()));
        } else {
            when_copied(&model, complete);
        }
        let run = model.migrate().await;
        let told = (run.outcome.outcome, run.outcome.runs_on, run.count("source: migrate_cancel"));
        assert_eq!(told, (Ending::RolledBack, RunsOn::Source, 0), "{after_the_last_look}: {run:?}");
        assert_eq!(model.state().source.run, "postmigrate", "{run:?}");
    }

    // over when the disks are copied
    for end in ["completed", "cancelled", "failed"] {
        let mut model = self::model();
        when_copied(&model, move |state| {
            for status in ["setup", "active", "pre-switchover", end] {
                state.enter(Source, status);
            }
        });
        let run = model.migrate().await;
        moved(&model, &run);
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_event_of_an_earlier_migration_may_come_late() {
    let mut model = model();
    let shared = model.shared.clone();
    model.on(Source, "migrate", move |seen| {
        let answer = shared.answer(Source, seen);
        shared.state().emit(Source, "MIGRATION", json!({"status": "cancelled"}));
        answer
    });
    let run = model.migrate().await;
    moved(&model, &run);
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_another_engine_has_taken_is_left_as_it_is() {
    let mut model = model();
    model.on(Destination, "migrate-incoming", |_| {
        vec![AnswerStep::error("The incoming migration has already been started")]
    });
    let run = model.migrate().await;
    assert_eq!((run.code(), run.outcome.runs_on), ("destination-used", RunsOn::Source), "{run:?}");
    let told = |command: &str| run.count(&format!("destination: {command}"));
    assert_eq!((told("migrate-set-capabilities"), told("quit")), (1, 0), "the other's settings stay: {run:?}");
    assert_eq!(run.count("source: migrate-set-capabilities"), 0, "{run:?}");

    for (spoil, code) in [
        (
            (|state: &mut PairState| state.destination.migration = Some("setup".to_owned())) as fn(&mut PairState),
            "destination-used",
        ),
        (|state| state.destination.exports.push("of-someone".to_owned()), "export-open"),
        (|state| state.destination.run = "prelaunch".to_owned(), "destination-state"),
    ] {
        let mut model = self::model();
        when_copied(&model, spoil);
        let run = model.migrate().await;
        assert_eq!((run.code(), run.outcome.runs_on), (code, RunsOn::Source), "{run:?}");
        assert_eq!(run.count("destination: migrate-set-capabilities"), 0, "{code}: {run:?}");
        assert_eq!(run.count("destination: migrate-incoming"), 0, "{code}: {run:?}");
    }
}

/// A device that is there from the given question on.
fn plug_at(model: &ModelPair, side: Side, number: usize) {
    answers(model, side, "query-pci", move |asked, _| {
        let function = json!({"bus": 0, "slot": 9, "function": 0, "id": {"vendor": 1, "device": 2}, "qdev_id": ""});
        (asked >= number).then(|| AnswerStep::Return(json!([{"bus": 0, "devices": [function]}])))
    });
}

/// Promise: same-machines.
#[tokio::test(start_paused = true)]
async fn a_machine_that_was_changed_while_disks_were_copied_leads_back() {
    type Spoil = fn(&mut PairState);
    let spoils: [(Spoil, &str, &str); 4] = [
        (|state| drop(state.source.disks.pop()), "machine-changed", "disk0: its drive was there and is not there"),
        (
            |state| state.destination.disks[0].file = "/other".to_owned(),
            "machine-changed",
            "disk0: its chain of images",
        ),
        (|state| state.destination.disks[0].size += 512, "machine-changed", "disk0: its size was"),
        (|state| state.source.blocked = vec!["9p is mounted"], "migration-blocked", "9p is mounted"),
    ];
    for (spoil, code, words) in spoils {
        let mut model = model();
        when_copied(&model, spoil);
        let run = model.migrate().await;
        assert_eq!((run.outcome.outcome, run.code()), (Ending::RolledBack, code), "{run:?}");
        assert!(run.message().contains(words), "{run:?}");
        assert_eq!(run.count("destination: migrate-incoming"), 0, "{run:?}");
    }
    for side in [Source, Destination] {
        // once by the checks, once before `migrate`, once behind it
        for (number, sent) in [(2, 0), (3, 1)] {
            let mut model = model();
            plug_at(&model, side, number);
            let run = model.migrate().await;
            back(&model, &run, Ending::RolledBack, "machine-changed");
            assert!(run.message().contains("PCI 00:09.0"), "{run:?}");
            assert!(run.message().contains("not there and is 0001:0002"), "{run:?}");
            assert_eq!((run.count("source: migrate"), run.count("source: migrate_cancel")), (sent, sent), "{run:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_unplugged_ends_the_migration_at_once() {
    for side in [Source, Destination] {
        let mut model = model();
        // nothing would end this copy
        model.state().added_share = 1.0;
        let shared = model.shared.clone();
        model.when(Source, "block-dirty-bitmap-remove", move || {
            let path = "/machine/peripheral/disk0";
            shared.state().emit(side, "DEVICE_DELETED", json!({"device": "disk0", "path": path}));
        });
        let run = model.migrate().await;
        back(&model, &run, Ending::RolledBack, "machine-changed");
        assert!(run.message().contains("disk0 was unplugged"), "{run:?}");
        assert_eq!(run.count("source: block-job-change"), 0, "at once: {run:?}");
    }
    // A tray that the guest itself moves changes nothing.
    let mut model = model();
    let shared = model.shared.clone();
    model.when(Source, "block-dirty-bitmap-remove", move || {
        shared.state().emit(Source, "DEVICE_TRAY_MOVED", json!({"device": "", "id": "cd0", "tray-open": true}));
    });
    let run = model.migrate().await;
    moved(&model, &run);
}

/// The checks may have been minutes ago: somebody else may have moved a guest there since.
#[tokio::test(start_paused = true)]
async fn a_guest_that_came_to_the_destination_since_the_checks_is_left_alone() {
    // The engine asks once in the checks, once before it tells the destination anything, once behind `stop`, and once
    // when the destination serves disks.
    for (number, served) in [(2, 0), (4, 1)] {
        let mut model = model();
        answers(&model, Destination, "query-status", move |asked, state| {
            if asked == number {
                state.destination.run = "running".to_owned();
                state.destination.migration = Some("completed".to_owned());
            }
            None
        });
        let run = model.migrate().await;
        assert_eq!((run.code(), run.outcome.runs_on), ("destination-state", RunsOn::Source), "{run:?}");
        for (command, count) in [("stop", served), ("nbd-server-start", served), ("quit", 0), ("cont", 0)] {
            assert_eq!(run.count(&format!("destination: {command}")), count, "{number}, {command}: {run:?}");
        }
        assert_eq!(run.count("source: drive-mirror"), 0, "nothing writes to its disks: {run:?}");
    }
}

/// An engine that is called off right before its `migrate` has begun none, and what is under way, or has led the guest
/// elsewhere, is somebody else's.
#[tokio::test(start_paused = true)]
async fn a_migration_that_leads_elsewhere_is_neither_cancelled_nor_taken_back() {
    for (status, stands, runs_on) in
        [("active", "running", RunsOn::Source), ("completed", "postmigrate", RunsOn::Unknown)]
    {
        let mut model = model();
        let migration = model.builder().start_here().unwrap();
        let (control, shared) = (migration.control(), model.shared.clone());
        model.when(Source, "migrate-set-capabilities", move || {
            let mut state = shared.state();
            (state.source.migration, state.source.run) = (Some(status.to_owned()), stands.to_owned());
            control.cancel();
        });
        let run = model.follow(migration).await;
        assert_eq!((run.count("source: migrate"), run.outcome.runs_on), (0, runs_on), "{status}: {run:?}");
        assert_eq!((run.count("source: migrate_cancel"), run.count("source: cont")), (0, 0), "{status}: {run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_waits_no_more_gets_no_guest() {
    let mut model = model();
    answers(&model, Destination, "stop", |asked, state| {
        if asked == 2 {
            state.destination.run = "prelaunch".to_owned();
        }
        None
    });
    let run = model.migrate().await;
    assert_eq!(run.count("source: migrate-continue"), 0, "{run:?}");
    assert_eq!((run.code(), run.outcome.runs_on), ("destination-state", RunsOn::Source), "{run:?}");
}

/// Settings that a former user left are out of force while the engine's migration runs, and then back.
#[tokio::test(start_paused = true)]
async fn parameters_that_a_former_user_left_are_out_of_force_for_the_run() {
    let left = [("tls-creds", "gone0"), ("tls-hostname", "there"), ("mode", "cpr-reboot")];
    let needed = [("tls-creds", ""), ("tls-hostname", ""), ("mode", "normal")];
    let mut model = model();
    let of = |state: &PairState, name: &str| state.source.parameters[name].clone();
    for (name, value) in left {
        model.state().source.parameters.insert(name.to_owned(), json!(value));
    }
    let shared = model.shared.clone();
    model.when(Source, "migrate", move || {
        for (name, value) in needed {
            assert_eq!(of(&shared.state(), name), json!(value), "{name}");
        }
    });
    let migration = cancel_at(&mut model, Destination, "nbd-server-stop");
    let run = model.follow(migration).await;
    assert_eq!(run.outcome.outcome, Ending::Cancelled, "{run:?}");
    for (name, value) in left {
        assert_eq!(of(&model.state(), name), json!(value), "{name}: {run:?}");
    }
}

/// What a host refuses is known before the disks are copied, and stays set for no longer than the question takes.
#[tokio::test(start_paused = true)]
async fn a_capability_that_a_host_refuses_is_known_before_the_disks() {
    for refuses in [true, false] {
        let mut model = model();
        for side in [Source, Destination] {
            let mut state = model.state();
            model::add_capabilities(&mut state.qemu(side).schema, &["postcopy-ram"]);
            state.qemu(side).capabilities.insert("postcopy-ram".to_owned(), false);
        }
        answers(&model, Destination, "migrate-set-capabilities", move |asked, _| {
            (refuses && asked == 1).then(|| AnswerStep::error("Postcopy is not supported: no userfaultfd"))
        });
        let migration = model.builder().policy("ram = ['postcopy']".parse().unwrap()).start_here().unwrap();
        let run = model.follow(migration).await;
        assert_eq!(run.count("source: drive-mirror"), usize::from(!refuses), "{run:?}");
        match refuses {
            true => assert_eq!((run.code(), run.outcome.outcome), ("command-refused", Ending::RolledBack), "{run:?}"),
            false => moved(&model, &run),
        }
    }
}

/// With the guest stopped, a side that does not answer the look behind `migrate` holds the guest up for no longer than
/// the mirrors may.
#[tokio::test(start_paused = true)]
async fn a_look_without_an_answer_does_not_hold_the_guest_up() {
    let mut model = model();
    let (shared, mut asked) = (model.shared.clone(), 0);
    model.on(Destination, "query-block", move |seen| {
        asked += 1;
        if asked <= 2 { shared.answer(Destination, seen) } else { Vec::new() }
    });
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "switchover-timeout");
    let window = run.blackout();
    let (stop, resume) = (window.first().unwrap().1, window.last().unwrap().1);
    assert!(resume - stop <= Duration::from_secs(5), "{:?}", resume - stop);
}

//! Refusals change nothing.

use super::*;

/// Spoils a pair, and asks for a migration: first for its plan, then for the migration itself.
async fn refused(code: &str, shape: &PairShape, spoil: impl Fn(&mut PairState), ask: impl Fn(Builder) -> Builder) {
    let spoiled = || {
        let model = ModelPair::new(shape);
        spoil(&mut model.state());
        model
    };
    let mut model = spoiled();
    let plan = ask(model.builder()).check_here().unwrap().wait().await.unwrap();
    assert!(plan.blockers().any(|finding| finding.code == code), "{code}: {:?}", plan.findings);
    assert!(asks_only(&model.log.lock().unwrap()), "{code}");

    let mut model = spoiled();
    let migration = ask(model.builder()).start_here().unwrap();
    let run = model.follow(migration).await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::Refused, code), "{code}: {run:?}");
    assert!(asks_only(&run.log), "{code}: {run:?}");
}

/// A schema of which nothing could be read told that the build has no feature at all, one by one.
#[tokio::test(start_paused = true)]
async fn a_schema_that_cannot_be_read_is_named() {
    let mut model = model();
    let unread = json!({"name": "of-tomorrow", "meta-type": "command", "arg-type": {"a": 1}});
    model.state().destination.schema.as_array_mut().unwrap().push(unread);
    let migration = model.builder().start_here().unwrap();
    let run = model.follow(migration).await;
    let reason = run.outcome.reason.as_ref().map(|reason| reason.message.clone()).unwrap_or_default();
    assert_eq!(run.outcome.outcome, Ending::Refused, "{run:?}");
    for word in ["destination", "cannot read the answer to query-qmp-schema", "invalid type: map"] {
        assert!(reason.contains(word), "{word}: {reason}");
    }
    assert!(asks_only(&run.log), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_side_says_refuses_the_migration() {
    type Spoil = fn(&mut PairState);
    let findings: [(&str, Spoil); 26] = [
        ("qemu-lacks", |state| state.source.schema = json!([])),
        ("qemu-lacks", |state| state.destination.schema = json!([{"name": "cont", "meta-type": "command"}])),
        ("source-state", |state| state.source.run = "postmigrate".to_owned()),
        ("source-state", |state| state.source.run = "inmigrate".to_owned()),
        ("source-state", |state| state.source.run = "finish-migrate".to_owned()),
        ("source-state", |state| state.source.run = "a-state-of-tomorrow".to_owned()),
        ("migration-blocked", |state| state.source.blocked = vec!["a device"]),
        ("migration-under-way", |state| state.source.migration = Some("active".to_owned())),
        ("migration-under-way", |state| state.source.migration = Some("a-status-of-tomorrow".to_owned())),
        ("destination-state", |state| state.destination.run = "running".to_owned()),
        ("destination-state", |state| state.destination.run = "a-state-of-tomorrow".to_owned()),
        ("destination-used", |state| state.destination.migration = Some("setup".to_owned())),
        ("destination-used", |state| state.destination.migration = Some("failed".to_owned())),
        ("ram-size", |state| state.destination.ram += 1),
        ("machine-type", |state| state.destination.machine = "pc-q35-10.0"),
        ("cpu-features", |state| state.destination.features = 0),
        ("leftover", |state| state.source.jobs.push(MirrorJob::new("qferry-mirror-7", "ready", 1))),
        ("leftover", |state| {
            drop(state.source.bitmaps.insert("node-disk0".to_owned(), ("qferry-guard-0".to_owned(), 0)))
        }),
        ("leftover", |state| state.destination.exports.push("qferry-export-0".to_owned())),
        ("export-open", |state| state.destination.exports.push("of-someone".to_owned())),
        ("disk-missing", |state| drop(state.destination.disks.pop())),
        ("disk-missing", |state| state.destination.disks[0].name = "another".to_owned()),
        ("disk-ambiguous", |state| {
            let disk = |file: &str| ModelDisk {
                name: "disk0".to_owned(),
                file: file.to_owned(),
                size: 64 << 20,
                read_only: false,
            };
            state.destination.disks = vec![disk("a"), disk("b")];
        }),
        ("disk-read-only", |state| state.destination.disks[0].read_only = true),
        ("disk-size", |state| state.destination.disks[0].size -= 512),
        ("disk-size", |state| state.destination.disks[0].size += 512),
    ];
    for (code, spoil) in findings {
        refused(code, &PairShape::default(), spoil, |builder| builder).await;
    }
}

/// Somebody else has moved the guest after the source was looked at: the guest is not said to be on the source.
#[tokio::test(start_paused = true)]
async fn a_destination_that_was_given_a_guest_meanwhile_may_have_the_guest() {
    for (migration, runs_on) in [(None, RunsOn::Source), (Some("completed"), RunsOn::Unknown)] {
        let mut model = model();
        model.state().destination.run = "running".to_owned();
        model.state().destination.migration = migration.map(str::to_owned);
        let run = model.migrate().await;
        assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Refused, runs_on), "{run:?}");
        assert!(asks_only(&run.log), "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_be_forced_is_forced_by_its_own_code() {
    let spoiled = || {
        let model = model();
        model.state().destination.machine = "pc-q35-10.0";
        model.state().destination.features = 0;
        model
    };
    let mut half = spoiled();
    let migration = half.builder().force("machine-type").start_here().unwrap();
    let run = half.follow(migration).await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::Refused, "cpu-features"), "{run:?}");
    assert!(run.message().contains("avx2") && run.message().contains("`force: cpu-features`"), "{run:?}");
    assert!(run.warned("machine-type") && asks_only(&run.log), "{run:?}");

    let mut whole = spoiled();
    let migration = whole.builder().force("machine-type").force("cpu-features").start_here().unwrap();
    let run = whole.follow(migration).await;
    moved(&whole, &run);
    assert!(run.warned("machine-type") && run.warned("cpu-features"), "{run:?}");

    let mut never = spoiled();
    never.state().destination.ram += 1;
    let builder = never.builder().force("machine-type").force("cpu-features").force("ram-blocks");
    // A code that nobody can force is refused before anything is looked at.
    let invalid = builder.clone().force("ram-size").validate().unwrap_err();
    let codes: Vec<&str> = invalid.problems.iter().map(|problem| problem.value.as_str()).collect();
    assert_eq!(codes, ["`ram-size`"]);
    let run = never.follow(builder.start_here().unwrap()).await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::Refused, "ram-size"), "{run:?}");
}

/// A QEMU that cannot describe its machine is no machine that differs.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_compared_is_only_told() {
    let mut model = model();
    for command in ["qom-get", "qom-list", "x-query-ramblock", "query-pci"] {
        model.refused(Destination, command);
        model.refused(Source, command);
    }
    let run = model.migrate().await;
    moved(&model, &run);
    let told = run
        .events
        .iter()
        .filter(|event| matches!(&event.kind, EventKind::Warning { code, .. } if code == "not-compared"));
    assert_eq!(told.count(), 3, "machine type, RAM blocks, CPU: {run:?}");
    assert!(run.warned("disk-place-unknown"), "{run:?}");
}

/// Another user could take the place of a socket, and read the guest's memory.
#[tokio::test(start_paused = true)]
async fn a_directory_of_sockets_that_others_can_write_to_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let socket = |name: &str| qferry::internals::endpoint::Address::unix(folder.path().join(name)).unwrap();
    let mut model = ModelPair::new(&disks(1));
    let builder = model.builder().runtime_dir(folder.path()).addresses(socket("nbd"), socket("ram"));
    let run = model.follow(builder.start_here().unwrap()).await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::Refused, "runtime-dir"), "{run:?}");
    assert!(run.outcome.reason.as_ref().is_some_and(|reason| reason.message.contains("(mode 0777)")), "{run:?}");
}

/// The guest would find the one disk in the place of the other, whatever the disks are called.
#[tokio::test(start_paused = true)]
async fn disks_that_changed_places_are_refused() {
    let exchange = |state: &mut PairState| state.destination.disks.reverse();
    refused("disk-place-differs", &disks(2), exchange, |builder| builder).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_refuses_the_migration() {
    let none = |_: &mut PairState| ();
    let tcp = |address: &str| -> qferry::internals::endpoint::Address { address.parse().unwrap() };
    let shape = disks(2);
    refused("disk-unknown", &shape, none, |builder| builder.disk("nothing", None)).await;
    refused("disk-unknown", &shape, none, |builder| builder.disk("disk0", Some("nothing".to_owned()))).await;
    let twice = |builder: Builder| builder.disk("disk0", None).disk("disk1", Some("disk0".to_owned()));
    refused("disk-ambiguous", &shape, none, twice).await;
    refused("address-missing", &shape, none, |builder| builder.settings(Settings::default())).await;
    let plain = |builder: Builder| builder.addresses(tcp("tcp:127.0.0.1:1"), tcp("tcp:192.0.2.1:2"));
    refused("plaintext", &shape, none, plain).await;
    refused("capability-missing", &shape, none, |builder| builder.multifd(2)).await;
    // The source's build alone has `multifd`.
    let source = |state: &mut PairState| model::add_capabilities(&mut state.source.schema, &["multifd"]);
    refused("capability-missing", &shape, source, |builder| builder.multifd(2)).await;
    refused("capability-missing", &shape, none, |builder| builder.policy("ram = ['postcopy']".parse().unwrap())).await;
    let both = |state: &mut PairState| {
        for qemu in [&mut state.source, &mut state.destination] {
            model::add_capabilities(&mut qemu.schema, &["multifd", "postcopy-ram"]);
        }
    };
    let conflicting = |builder: Builder| builder.multifd(2).policy("ram = ['postcopy']".parse().unwrap());
    refused("capability-conflict", &shape, both, conflicting).await;
}

#[tokio::test(start_paused = true)]
async fn a_process_is_not_moved_onto_itself() {
    let mut model = model();
    let pid = i32::try_from(std::process::id()).ok();
    let migration = model.builder_with([pid, pid]).start_here().unwrap();
    let run = model.follow(migration).await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::Refused, "same-process"), "{run:?}");
    assert!(asks_only(&run.log), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_plan_only_asks() {
    let mut model = ModelPair::new(&disks(3));
    let plan = model.builder().check_here().unwrap().wait().await.unwrap();
    // The model's images cannot be read, so nothing is proved of them.
    let codes: Vec<&str> = plan.findings.iter().map(|finding| finding.code.as_str()).collect();
    assert_eq!((codes, plan.disks.len()), (vec!["backing-unverified"], 3), "{plan:?}");
    assert!(asks_only(&model.log.lock().unwrap()), "{:?}", model.log);
}

#[tokio::test(start_paused = true)]
async fn what_is_only_worth_knowing_stops_nothing() {
    let mut model = model();
    model.state().source.jobs.push(MirrorJob::new("of-someone", "running", 1));
    model.state().len = 0;
    let run = model.migrate().await;
    assert!(run.warned("job-running"), "{run:?}");
    // A job of somebody else is neither judged nor ended.
    assert_eq!(run.outcome.outcome, Ending::Moved, "{run:?}");
    assert!(model.state().source.jobs.iter().any(|job| job.id == "of-someone"));

    // A file of this host that both QEMUs have open is not copied.
    let mut model = processes();
    let file = tempfile::NamedTempFile::new().unwrap();
    for side in [Source, Destination] {
        model.state().qemu(side).disks[0].file = file.path().display().to_string();
        model.open(side, file.reopen().unwrap());
    }
    let run = model.migrate().await;
    moved(&model, &run);
    assert!(run.warned("disk-shared") && run.count("source: drive-mirror") == 0, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn no_answer_and_no_monitor_are_refusals_too() {
    let mut model = model();
    model.silent(Destination, "query-block");
    let run = model.migrate().await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::Refused, "no-answer"), "{run:?}");
    assert!(asks_only(&run.log), "{run:?}");
    let mut model = self::model();
    model.destination.close();
    let run = model.migrate().await;
    assert_eq!(run.outcome.outcome, Ending::Refused, "{run:?}");
    assert!(asks_only(&run.log), "{run:?}");
}

//! The announcement of the guest's network cards, which nothing waits for.

use super::*;

/// A pair whose destination can announce, with these lines of `info network` and this number of rounds.
fn networked(shape: &PairShape, network: &'static str, rounds: u64) -> ModelPair {
    let model = ModelPair::new(shape);
    {
        let mut state = model.state();
        model::add_command(&mut state.destination.schema, "announce-self");
        for (name, value) in [("initial", 11), ("max", 12), ("rounds", rounds), ("step", 14)] {
            state.destination.parameters.insert(format!("announce-{name}"), json!(value));
        }
    }
    let shared = model.shared.clone();
    model.on(Destination, "human-monitor-command", move |seen| match seen.arguments["command-line"].as_str() {
        Some("info network") => vec![AnswerStep::Return(json!(network))],
        _ => shared.answer(Destination, seen),
    });
    model.on(Destination, "announce-self", |_| vec![AnswerStep::Return(json!({}))]);
    model
}

const CARD: &str = " \\ n: nic1: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:56\r\n";

#[tokio::test(start_paused = true)]
async fn cards_are_announced_by_the_migration_parameters_once_the_guest_runs() {
    let mut model = networked(&PairShape::default(), CARD, 3);
    let run = model.migrate().await;
    moved(&model, &run);
    assert_eq!((run.count("destination: announce-self"), run.actions("announce-self")), (1, 1), "{run:?}");
    assert!(run.position("destination: announce-self") > run.position("destination: cont"), "{run:?}");
    assert!(run.blackout().iter().all(|(line, _)| !line.contains("human-monitor-command")), "{run:?}");
    let arguments = model.destination.saw("announce-self").await.arguments;
    assert_eq!(arguments, json!({"initial": 11, "max": 12, "rounds": 3, "step": 14}));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_announced_where_there_is_nothing_to_announce() {
    let paused = PairShape { guest: "paused", ..PairShape::default() };
    let (running, user) = (PairShape::default(), "n: index=0,type=user,net=10.0.2.0\r\n");
    for (what, mut model) in [
        ("no card", networked(&running, user, 3)),
        ("no rounds", networked(&running, CARD, 0)),
        ("a guest that stays paused", networked(&paused, CARD, 3)),
    ] {
        let run = model.migrate().await;
        moved(&model, &run);
        assert_eq!(run.count("destination: announce-self") + run.actions("announce-self"), 0, "{what}: {run:?}");
    }
    // A QEMU without the command is asked for no cards.
    let mut model = model();
    let run = model.migrate().await;
    moved(&model, &run);
    let asked = |line: &str| run.log.iter().any(|(_, seen)| seen.arguments["command-line"] == line);
    assert!(!asked("info network") && asked("info qtree"), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn an_announcement_that_fails_or_hangs_changes_nothing() {
    for (what, command) in [("asks", "human-monitor-command"), ("tells", "announce-self")] {
        let mut model = networked(&PairShape::default(), CARD, 3);
        let shared = model.shared.clone();
        // The in-band lane of the monitor goes on, as where only this command takes long.
        model.on(Destination, command, move |seen| match seen.arguments["command-line"].as_str() {
            Some("info qtree") => shared.answer(Destination, seen),
            _ => Vec::new(),
        });
        let run = model.migrate().await;
        moved(&model, &run);
        assert!(run.outcome.total_ms < 5000, "{what}: {run:?}");
        let mut model = networked(&PairShape::default(), CARD, 3);
        model.refused(Destination, "announce-self");
        let run = model.migrate().await;
        moved(&model, &run);
        assert!(run.warned("network-unannounced") && run.actions("announce-self") == 0, "{run:?}");
    }
}

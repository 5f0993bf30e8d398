//! Migrations that one side ends by itself, by table: each as real QEMUs have shown it.

use super::*;

fn failed(words: &str) -> Value {
    json!({ "status": "failed", "error-desc": words })
}

fn told(looks: &PairLooks) -> Vec<(DiagnosisCode, Confidence)> {
    causes(looks).iter().map(|cause| (cause.code, cause.confidence)).collect()
}

/// Zero copy without the right to lock memory: the words of 7.2 to 11.1, and those of a destination that got a part.
#[test]
fn memory_that_may_not_be_locked_comes_before_the_state_that_was_cut_off_by_it() {
    use DiagnosisCode as Code;
    let words = "Process can't lock enough memory for using MSG_ZEROCOPY: No buffer space available";
    let source = with(steady("running", failed(words)), &|side| {
        side.process = Some(ProcessLook { pid: 7, state: 'S', memlock: Some(0), ..ProcessLook::default() });
    });
    for theirs in ["load of migration failed: Invalid argument: Section footer error, section_id: 1", "Broken pipe"] {
        let looks = pair(source.clone(), steady("inmigrate", failed(theirs)));
        let found = causes(&looks);
        assert_eq!((found[0].code, found[0].confidence), (Code::Memlock, Confidence::Likely), "{found:#?}");
        assert!(found[0].evidence.iter().any(|fact| fact.contains("process 7 may lock 0 bytes")), "{found:#?}");
        assert!(found[1..].iter().all(|cause| cause.confidence == Confidence::Possible), "{found:#?}");
    }
}

/// A destination whose host bars it from userfaultfd refuses the capability, and afterwards says only what follows.
#[test]
fn postcopy_that_the_destination_may_not_take_is_told_from_a_state_that_it_refuses() {
    use {Confidence::*, DiagnosisCode as Code};
    let both = |asked: bool, has: bool, catches_faults: Option<bool>, words: &str| {
        let on = |side: &mut SideLooks, on: bool| {
            if on {
                side.capabilities.insert("postcopy-ram".to_owned());
            }
        };
        let source = with(steady("running", failed("Sibling indicated error 1")), &|side| on(side, asked));
        pair(
            source,
            with(steady("inmigrate", failed(words)), &|side| {
                on(side, has);
                side.process = Some(ProcessLook { pid: 7, state: 'S', catches_faults, ..ProcessLook::default() });
            }),
        )
    };
    let (plain, more) = ("load of migration failed: Invalid argument", "Userfaultfd not available: not permitted");
    let whole = format!("load of migration failed: Operation not permitted: {more}");
    let refused = (Code::StateRefused, Likely);
    for (asked, has, catches, words, expected) in [
        (true, false, Some(false), plain, vec![(Code::Userfaultfd, Likely), (Code::StateRefused, Possible)]),
        (true, true, Some(false), plain, vec![(Code::Userfaultfd, Likely), (Code::StateRefused, Possible)]),
        // whoever has left the capability off at one side has the same words
        (true, false, Some(true), plain, vec![refused, (Code::Userfaultfd, Possible)]),
        (true, false, None, plain, vec![refused, (Code::Userfaultfd, Possible)]),
        // with the capability on at both sides it is something else
        (true, true, Some(true), plain, vec![refused]),
        (true, true, None, plain, vec![refused]),
        (false, false, Some(false), plain, vec![refused]),
        // 11.1 has the reason among its words
        (true, true, Some(false), &*whole, vec![(Code::Userfaultfd, Likely)]),
    ] {
        let looks = both(asked, has, catches, words);
        assert_eq!(told(&looks), expected, "{asked} {has} {catches:?} {words}");
        let off = format!("{:?}", causes(&looks)).contains("on at the source and off at the destination");
        assert_eq!(off, asked && !has, "{:#?}", causes(&looks));
    }
}

/// 10.0 says that a migration is cancelled whose channel is not connected yet, and goes on connecting.
#[test]
fn a_migration_that_is_cancelled_and_connects_on_is_told_from_one_that_is_over() {
    let cancelled = |yanks: Vec<YankLook>, state: Option<ConnectionState>| {
        told(&only_source(with(steady("running", json!({ "status": "cancelled" })), &|side| {
            side.yanks.clone_from(&yanks);
            side.process = state.map(|state| connection(1, state));
        })))
    };
    let lingers = || vec![YankLook::Migration];
    let stuck = |confidence| vec![(DiagnosisCode::CancellingStuck, confidence)];
    assert_eq!(cancelled(lingers(), Some(ConnectionState::SynSent)), stuck(Confidence::Certain));
    assert_eq!(cancelled(lingers(), Some(ConnectionState::Established)), stuck(Confidence::Likely));
    assert_eq!(cancelled(lingers(), None), stuck(Confidence::Likely));
    assert_eq!(cancelled(Vec::new(), Some(ConnectionState::SynSent)), vec![]);
    assert_eq!(cancelled(vec![YankLook::BlockNode { node_name: "nbd0".to_owned() }], None), vec![]);
    // a cut frees a thread that writes, and none that connects
    let cancelling = |state| {
        let source = with(steady("running", json!({ "status": "cancelling" })), &|side| {
            side.process = Some(connection(1, state));
        });
        causes(&only_source(source)).into_iter().map(|cause| cause.fixable).collect::<Vec<_>>()
    };
    assert_eq!(cancelling(ConnectionState::SynSent), [false]);
    assert_eq!(cancelling(ConnectionState::Established), [true]);
}

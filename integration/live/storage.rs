//! Storage, before and during the move: what is proved, what is refused, and what arrives.

use super::support::{block_on, builder, start};
use qferry::migration::Plan;
use qferry_bed::{Pair, Spec};

fn plan(pair: &Pair) -> Plan {
    block_on(builder(pair).plan()).unwrap_or_else(|failure| panic!("{failure:?}"))
}

#[test]
fn a_pair_that_is_as_it_should_be_has_nothing_against_it() {
    let pair = start(&Spec::quick());
    let plan = plan(&pair);
    assert_eq!(plan.findings, [], "{plan:#?}");
    assert_eq!(plan.verified.len(), 1);
}

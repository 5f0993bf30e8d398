//! Whether each QEMU can be reached while its main loop hangs: commands out of band alone get through then.
//!
//! Pure.

use super::finding::Finding;
use crate::{codes::FindingCode, preflight::facts::SideFacts};

pub(super) fn run(source: &SideFacts, destination: &SideFacts) -> Vec<Finding> {
    let lost = [
        (
            source,
            "this QEMU cannot be freed where it waits for a destination that gives no answer, and its guest stands",
        ),
        (destination, "a destination that hangs cannot be told from one that was stopped as a whole"),
    ];
    let found = |(side, lost): (&SideFacts, &str)| {
        let message = format!("the monitor offers no commands out of band: {lost}");
        Finding::new(FindingCode::NoOutOfBand, &side.name, message)
    };
    lost.into_iter().filter(|(side, _)| !side.out_of_band).map(found).collect()
}

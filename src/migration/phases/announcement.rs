//! The announcement of the guest's network cards by the destination, once the guest runs there.
//!
//! QEMU announces the cards by itself when RAM has arrived. A destination that was started with `-S` holds these frames
//! back until `cont`, and then all rounds leave within 2 ms (measured on 7.2, 10.0.13 and 11.1): a switch whose port
//! does not forward yet drops every one of them, and nobody reaches the guest until the guest itself sends. The rounds
//! of `announce-self` are spread over half a second, and a virtio-net driver is asked to announce its addresses once
//! more. Nothing waits for the announcement, and a failure of it changes nothing.

use crate::{
    migration::context::Context,
    progress::describe,
    qemu::{Process, ProcessError},
    qmp::QmpRequest,
};
use qapi::qmp;
use serde_json::{Map, Value};
use std::pin::pin;
use tokio::{select, try_join};

const ANNOUNCE: &str = "announce-self";

/// Does the `rest` of a migration, and has the destination announce the network cards beside it. An announcement that
/// comes to no end in the same time is left to QEMU.
pub(crate) async fn announce_beside<T>(context: &Context, destination: &Process, rest: impl Future<Output = T>) -> T {
    let mut rest = pin!(rest);
    let announced = pin!(announce(context, destination));
    select! {
        // The commands of the rest are sent first.
        biased;
        end = &mut rest => return end,
        () = announced => {}
    }
    rest.await
}

async fn announce(context: &Context, destination: &Process) {
    if !destination.features().announce_self {
        return;
    }
    match try_to_announce(destination).await {
        Ok(None) => {}
        Ok(Some(because)) => context.report.action(ANNOUNCE, because),
        Err(error) if error.is_refusal() => context.report.warn("network-unannounced", describe(&error)),
        // A destination that is gone, or hangs, is found out by those who depend on it.
        Err(error) => tracing::debug!(%error, "the announcement of the network cards"),
    }
}

/// Says why, where the destination was told to announce its cards.
async fn try_to_announce(destination: &Process) -> Result<Option<String>, ProcessError> {
    // No command but this one names the cards of every kind: query-rx-filter names those of virtio-net alone.
    let network = qmp::human_monitor_command { command_line: "info network".to_owned(), cpu_index: None };
    let (network, parameters) =
        try_join!(destination.ask(&network), destination.ask(&qmp::query_migrate_parameters {}))?;
    let cards = count_cards(&network);
    let Some(rounds) = rounds(&parameters).filter(|_| cards > 0) else { return Ok(None) };
    let with = |request: QmpRequest, (name, value): (&'static str, u64)| request.with(name, value);
    let request = rounds.into_iter().fold(QmpRequest::named(ANNOUNCE), with);
    destination.act_with(ANNOUNCE, request).await?;
    let [_, _, (_, count), _] = rounds;
    let cards = match cards {
        1 => "a network card".to_owned(),
        cards => format!("{cards} network cards"),
    };
    Ok(Some(format!(
        "the guest runs on the destination with {cards}: {count} more rounds, for what QEMU sends by itself leaves all \
         at once when a destination with -S resumes its guest, and may be lost"
    )))
}

/// The network cards of the guest in QEMU's answer to `info network`.
fn count_cards(network: &str) -> usize {
    network.lines().filter(|line| line.contains(",type=nic,")).count()
}

/// The arguments, by the destination's migration parameters; `None` where the destination's owner wants no rounds, or
/// QEMU does not tell.
fn rounds(parameters: &Map<String, Value>) -> Option<[(&'static str, u64); 4]> {
    let value = |name: &'static str| Some((name, parameters.get(&format!("announce-{name}"))?.as_u64()?));
    let all = [value("initial")?, value("max")?, value("rounds")?, value("step")?];
    let [_, _, (_, count), _] = all;
    (count > 0).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn cards_of_every_kind_are_counted_and_nothing_else() {
        // Lines of QEMU 10.0.13.
        let cards = "hub 0\r\n \\ n: nic1: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:56\r\n\
                     x: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:57\r\n \\ t: index=0,type=tap,fd=9\r\n";
        assert_eq!(count_cards(cards), 2);
        assert_eq!(count_cards(""), 0);
        assert_eq!(count_cards("n: index=0,type=user,net=10.0.2.0\r\n"), 0);
    }

    #[test]
    fn the_rounds_are_those_of_the_migration_parameters() {
        let with = |count: Value| {
            let all = json!({"announce-initial": 1, "announce-max": 2, "announce-rounds": count, "announce-step": 4});
            rounds(all.as_object().expect("an object"))
        };
        assert_eq!(with(json!(3)), Some([("initial", 1), ("max", 2), ("rounds", 3), ("step", 4)]));
        assert_eq!(with(json!(0)), None);
        assert_eq!(with(json!(null)), None);
        assert_eq!(rounds(&Map::new()), None);
    }
}

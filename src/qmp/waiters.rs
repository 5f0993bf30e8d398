//! The table of commands on the wire.
//!
//! Owns the matching of replies to callers and the count of in-band commands QEMU has not worked off. A caller that
//! gave up stays in the table, so that its late reply is recognised; a reply must never be an error of the connection.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::frame::{ErrorReply, ReplyFrame};

/// At most this many commands are remembered after their callers gave up.
const ABANDONED_LIMIT: usize = 1024;

/// A command on the wire.
#[derive(Debug)]
pub(super) struct ReplyWaiter {
    pub(super) id: String,
    pub(super) command: Cow<'static, str>,
    pub(super) sent_at: Instant,
    pub(super) reply: oneshot::Sender<Result<Value, ErrorReply>>,
}

/// What became of a reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReplyMatch {
    /// Handed to its caller.
    Delivered,
    /// Its caller had given up.
    Late { command: Cow<'static, str>, age: Duration },
    /// Its id is not ours, or was forgotten.
    UnknownId,
    /// An error without an id.
    Unidentified,
}

#[derive(Debug, Default)]
pub(super) struct ReplyWaiters {
    /// By serial number, hence by age.
    table: BTreeMap<u64, ReplyWaiter>,
    /// In-band commands QEMU may still have queued, in wire order.
    in_band: VecDeque<u64>,
}

impl ReplyWaiters {
    /// How many in-band commands QEMU may still have queued.
    pub(super) fn in_band(&self) -> usize {
        self.in_band.len()
    }

    /// When the oldest in-band command was sent that QEMU may still be at.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        let oldest = self.in_band.front()?;
        self.table.get(oldest).map(|waiter| waiter.sent_at)
    }

    /// Registers a command about to be written. Returns how many abandoned ones were forgotten to stay bounded.
    pub(super) fn insert(&mut self, serial: u64, in_band: bool, waiter: ReplyWaiter) -> u64 {
        self.table.insert(serial, waiter);
        if in_band {
            self.in_band.push_back(serial);
        }
        let mut forgotten = 0;
        while self.table.len() > ABANDONED_LIMIT {
            let abandoned = self.table.iter().find(|(_, waiter)| waiter.reply.is_closed());
            let Some(serial) = abandoned.map(|(serial, _)| *serial) else {
                break;
            };
            self.table.remove(&serial);
            forgotten += 1;
        }
        forgotten
    }

    /// Finds the caller of a reply.
    pub(super) fn settle(&mut self, reply: ReplyFrame) -> ReplyMatch {
        let Some(id) = reply.id else {
            if reply.result.is_ok() {
                return ReplyMatch::UnknownId;
            }
            self.lose_oldest();
            return ReplyMatch::Unidentified;
        };
        let Some(serial) = id.as_str().and_then(serial_of) else {
            return ReplyMatch::UnknownId;
        };
        // Also when it was forgotten: it is worked off all the same.
        self.work_off(serial);
        let known = self.table.get(&serial).is_some_and(|waiter| id == waiter.id.as_str());
        let Some(waiter) = known.then(|| self.table.remove(&serial)).flatten() else {
            return ReplyMatch::UnknownId;
        };
        let age = waiter.sent_at.elapsed();
        match waiter.reply.send(reply.result) {
            Ok(()) => ReplyMatch::Delivered,
            Err(_) => ReplyMatch::Late { command: waiter.command, age },
        }
    }

    /// A line that may have been a reply was lost: the oldest in-band command may have been worked off.
    ///
    /// Without this, seven lost replies would stop in-band commands for ever. Guessing wrong costs little: QEMU then
    /// stops reading for a moment.
    pub(super) fn lose_oldest(&mut self) {
        self.in_band.pop_front();
    }

    /// QEMU answers in-band commands in order, so those sent before an answered one are worked off too.
    fn work_off(&mut self, serial: u64) {
        if let Some(at) = self.in_band.iter().position(|known| *known == serial) {
            self.in_band.drain(..=at);
        }
    }
}

/// The id of a command: readable in a transcript, unique on the connection.
pub(super) fn id_of(command: &str, serial: u64) -> String {
    format!("{command}#{serial}")
}

fn serial_of(id: &str) -> Option<u64> {
    id.rsplit_once('#')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    type ReplyReceiver = oneshot::Receiver<Result<Value, ErrorReply>>;

    fn insert(waiters: &mut ReplyWaiters, serial: u64) -> (ReplyReceiver, u64) {
        let (reply, receiver) = oneshot::channel();
        let waiter = ReplyWaiter { id: id_of("stop", serial), command: "stop".into(), sent_at: Instant::now(), reply };
        (receiver, waiters.insert(serial, true, waiter))
    }

    fn reply(id: Option<Value>) -> ReplyFrame {
        ReplyFrame { id, result: Ok(json!({})) }
    }

    #[test]
    fn only_our_own_ids_settle() {
        let mut waiters = ReplyWaiters::default();
        let (mut receiver, _) = insert(&mut waiters, 1);
        for id in
            [json!("cont#1"), json!("stop#01"), json!("stop#+1"), json!("stop#2"), json!("x"), json!(1), json!([])]
        {
            assert_eq!(waiters.settle(reply(Some(id))), ReplyMatch::UnknownId);
        }
        assert_eq!(waiters.settle(reply(None)), ReplyMatch::UnknownId);
        assert!(receiver.try_recv().is_err());
        assert_eq!(waiters.settle(reply(Some(json!("stop#1")))), ReplyMatch::Delivered);
        assert_eq!(waiters.settle(reply(Some(json!("stop#1")))), ReplyMatch::UnknownId);
    }

    #[test]
    fn a_flood_of_answers_to_nothing_leaves_nothing() {
        let mut waiters = ReplyWaiters::default();
        let (mut receiver, _) = insert(&mut waiters, 1);
        for n in 0..10_000_u64 {
            let ids = [json!(format!("stop#{}", n + 2)), json!(format!("#{}", n + 2)), json!(u64::MAX - n), json!([n])];
            for id in ids.into_iter().map(Some).chain([None]) {
                assert_eq!(waiters.settle(reply(id)), ReplyMatch::UnknownId);
            }
        }
        assert_eq!((waiters.table.len(), waiters.in_band.len()), (1, 1));
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn an_answer_works_off_what_was_sent_before_it() {
        let mut waiters = ReplyWaiters::default();
        let receivers: Vec<_> = (1..=7).map(|serial| insert(&mut waiters, serial)).collect();
        assert_eq!(waiters.in_band(), 7);
        waiters.settle(reply(Some(json!("stop#5"))));
        assert_eq!(waiters.in_band(), 2);
        waiters.lose_oldest();
        assert_eq!(waiters.in_band(), 1);
        drop(receivers);
    }

    #[test]
    fn the_abandoned_are_bounded_and_the_waiting_are_kept() {
        let mut waiters = ReplyWaiters::default();
        let (mut waiting, _) = insert(&mut waiters, 0);
        let mut forgotten = 0;
        for serial in 1..2000 {
            forgotten += insert(&mut waiters, serial).1;
        }
        assert_eq!(waiters.table.len(), ABANDONED_LIMIT);
        assert_eq!(forgotten, 2000 - ABANDONED_LIMIT as u64);
        assert_eq!(waiters.settle(reply(Some(json!("stop#0")))), ReplyMatch::Delivered);
        assert!(waiting.try_recv().unwrap().is_ok());
    }
}

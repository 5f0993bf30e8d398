//! The table of commands on the wire.
//!
//! The module owns the matching of replies to callers, and the count of in-band commands that QEMU has not finished. A
//! command whose caller gave up stays in the table, so that its late reply is recognised. A reply must never be an
//! error of the connection.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::frame::{ErrorReply, ReplyFrame};

/// Size of the table beyond which commands whose callers gave up are forgotten.
const ABANDONED_LIMIT: usize = 1024;

/// A command on the wire.
#[derive(Debug)]
pub(super) struct ReplyWaiter {
    pub(super) id: String,
    pub(super) command: Cow<'static, str>,
    pub(super) sent_at: Instant,
    pub(super) reply: oneshot::Sender<Result<Value, ErrorReply>>,
    /// Whether the caller reads the line of the answer alone.
    pub(super) unread: bool,
}

/// Result of matching a reply with the commands on the wire.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReplyMatch {
    /// The caller has the reply.
    Delivered,
    /// The caller had given up.
    Late { command: Cow<'static, str>, age: Duration },
    /// The id belongs to no command of this client, or to a forgotten one.
    UnknownId,
    /// The reply is an error without an id.
    Unidentified,
}

/// The commands on the wire.
#[derive(Debug, Default)]
pub(super) struct ReplyWaiters {
    /// Commands by serial number, hence by age.
    table: BTreeMap<u64, ReplyWaiter>,
    /// Serial numbers of the in-band commands that QEMU may still have queued, in wire order.
    in_band: VecDeque<u64>,
}

impl ReplyWaiters {
    /// Whether a caller waits who reads the line of the answer alone.
    pub(super) fn has_unread(&self) -> bool {
        self.table.values().any(|waiter| waiter.unread)
    }

    /// Whether the caller of the command with this id reads the line of the answer alone.
    pub(super) fn is_unread(&self, id: Option<&Value>) -> bool {
        let id = id.and_then(Value::as_str);
        let waiter = id.and_then(serial_of).and_then(|serial| self.table.get(&serial));
        waiter.is_some_and(|waiter| waiter.unread && id == Some(waiter.id.as_str()))
    }

    /// Number of in-band commands that QEMU may still have queued.
    pub(super) fn in_band(&self) -> usize {
        self.in_band.len()
    }

    /// Time at which the oldest in-band command that QEMU may still be working on was sent.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        let oldest = self.in_band.front()?;
        self.table.get(oldest).map(|waiter| waiter.sent_at)
    }

    /// Registers a command about to be written. Returns the number of abandoned commands forgotten to stay bounded.
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

    /// Hands a reply to the caller of its command.
    pub(super) fn deliver(&mut self, reply: ReplyFrame) -> ReplyMatch {
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
        // QEMU has finished the command even where the table has forgotten it.
        self.finish_up_to(serial);
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

    /// Counts the oldest in-band command as finished, after a lost line that may have been its reply.
    ///
    /// Otherwise seven lost replies would stop in-band commands for ever. A wrong guess costs little: QEMU then stops
    /// reading for a moment.
    pub(super) fn lose_oldest(&mut self) {
        self.in_band.pop_front();
    }

    /// Counts a command as finished. QEMU answers in-band commands in order, so earlier ones are finished too.
    fn finish_up_to(&mut self, serial: u64) {
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
        let (id, sent_at) = (id_of("stop", serial), Instant::now());
        let waiter = ReplyWaiter { id, command: "stop".into(), sent_at, reply, unread: false };
        (receiver, waiters.insert(serial, true, waiter))
    }

    fn reply(id: Option<Value>) -> ReplyFrame {
        ReplyFrame { id, result: Ok(json!({})) }
    }

    #[test]
    fn only_ids_of_this_client_are_delivered() {
        let mut waiters = ReplyWaiters::default();
        let (mut receiver, _) = insert(&mut waiters, 1);
        for id in
            [json!("cont#1"), json!("stop#01"), json!("stop#+1"), json!("stop#2"), json!("x"), json!(1), json!([])]
        {
            assert_eq!(waiters.deliver(reply(Some(id))), ReplyMatch::UnknownId);
        }
        assert_eq!(waiters.deliver(reply(None)), ReplyMatch::UnknownId);
        assert!(receiver.try_recv().is_err());
        assert_eq!(waiters.deliver(reply(Some(json!("stop#1")))), ReplyMatch::Delivered);
        assert_eq!(waiters.deliver(reply(Some(json!("stop#1")))), ReplyMatch::UnknownId);
    }

    #[test]
    fn a_flood_of_answers_to_nothing_leaves_nothing() {
        let mut waiters = ReplyWaiters::default();
        let (mut receiver, _) = insert(&mut waiters, 1);
        for n in 0..10_000_u64 {
            let ids = [json!(format!("stop#{}", n + 2)), json!(format!("#{}", n + 2)), json!(u64::MAX - n), json!([n])];
            for id in ids.into_iter().map(Some).chain([None]) {
                assert_eq!(waiters.deliver(reply(id)), ReplyMatch::UnknownId);
            }
        }
        assert_eq!((waiters.table.len(), waiters.in_band.len()), (1, 1));
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn an_answer_finishes_the_commands_sent_before_it() {
        let mut waiters = ReplyWaiters::default();
        let receivers: Vec<_> = (1..=7).map(|serial| insert(&mut waiters, serial)).collect();
        assert_eq!(waiters.in_band(), 7);
        waiters.deliver(reply(Some(json!("stop#5"))));
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
        assert_eq!(waiters.deliver(reply(Some(json!("stop#0")))), ReplyMatch::Delivered);
        assert!(waiting.try_recv().unwrap().is_ok());
    }
}

//! The course of the two QEMUs between commands: RAM is sent, mirrors copy and end, the guest stops and resumes.

use std::time::Duration;

use qferry::internals::progress::Side;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::schema::has_exit_on_error;
use super::{AfterContinue, CommandFault, MirrorEnd, MirrorJob, ModelQemu, PairState, RamProgress, SharedPair};
use crate::fake::ReceivedCommand;

/// The step of RAM. No multiple of the engine's sampling period, so that no sample falls on a step.
const TICK: Duration = Duration::from_millis(30);

impl SharedPair {
    /// Copies a disk until its mirror is ready.
    pub(super) async fn copy(&self, id: String, start: usize) {
        let takes = self.state().mirror_takes;
        sleep(takes).await;
        let mut state = self.state();
        // A mirror that was started again has the same name.
        let same = state.starts[&id] == start;
        if same && state.source.jobs.iter().any(|job| job.id == id && job.status == "running") {
            state.job(&id, "ready");
            state.emit(Side::Source, "BLOCK_JOB_READY", json!({"device": id}));
        }
    }

    pub(super) async fn precopy(&self) {
        if !self.state().source.is_migrating() {
            return; // somebody was faster
        }
        self.state().enter(Side::Source, "active");
        let strange = self.state().odd_status;
        if let Some(strange) = strange {
            sleep(Duration::from_millis(600)).await;
            self.state().enter(Side::Source, strange);
        }
        {
            let mut state = self.state();
            state.sent = RamProgress { remaining: state.source.ram, ..RamProgress::default() };
        }
        loop {
            sleep(TICK).await;
            let mut state = self.state();
            if !state.source.is_migrating() || !state.source.is_alive() {
                return;
            }
            if state.send_ram() && state.converges {
                break;
            }
        }
        let mut state = self.state();
        state.ran_at_the_stop = state.source.run == "running";
        if state.ran_at_the_stop {
            state.emit(Side::Source, "STOP", Value::Null);
        }
        state.source.run = "finish-migrate".to_owned();
        state.enter(Side::Source, "pre-switchover");
    }
}

impl PairState {
    pub fn qemu(&mut self, side: Side) -> &mut ModelQemu {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "a caller writes the data on the spot")]
    pub fn emit(&mut self, side: Side, name: &str, data: Value) {
        if self.mute_sides.contains(&side) || (self.muted)(side, name, &data) {
            return;
        }
        let seen = ReceivedCommand {
            name: name.to_owned(),
            arguments: data.clone(),
            id: None,
            oob: false,
            at: Instant::now(),
        };
        self.log.lock().unwrap().push((side.as_str().to_owned(), seen));
        self.qemu(side).emit.as_ref().unwrap().event(name, &data);
    }

    pub(super) fn fault(&mut self, side: Side) -> Option<CommandFault> {
        let count = self.counts.entry(side).or_default();
        let number = *count;
        *count += 1;
        self.faults.iter().find(|(at, n, _)| *at == side && *n == number).map(|(_, _, fault)| *fault)
    }

    /// Ends a process and its monitor.
    pub fn die(&mut self, side: Side) {
        self.qemu(side).end();
        self.close(side);
        if side == Side::Destination {
            self.lose_destination();
        }
    }

    pub fn close(&mut self, side: Side) {
        self.qemu(side).emit.as_ref().unwrap().close();
    }

    /// The migration of one side enters a status.
    pub fn enter(&mut self, side: Side, status: &str) {
        self.qemu(side).migration = Some(status.to_owned());
        self.emit(side, "MIGRATION", json!({ "status": status, "x-new": 1 }));
    }

    pub(super) fn stop(&mut self, side: Side) {
        if self.qemu(side).run == "running" {
            self.qemu(side).run = "paused".to_owned();
            self.emit(side, "STOP", Value::Null);
        }
    }

    /// The guest's owner stops the guest on the source.
    pub fn stop_by_owner(&mut self) {
        self.stop(Side::Source);
        self.guest_ran = false;
    }

    pub(super) fn resume(&mut self, side: Side) {
        let other = if side == Side::Source { Side::Destination } else { Side::Source };
        if self.qemu(other).run == "running" {
            self.violations.push("two runners");
        }
        if !self.guest_ran {
            self.violations.push("a paused guest was resumed");
        }
        if self.qemu(side).run != "running" {
            self.qemu(side).run = "running".to_owned();
            self.emit(side, "RESUME", Value::Null);
        }
    }

    pub(super) fn leave_finish_migrate(&mut self) {
        if self.source.run == "finish-migrate" {
            match (self.guest_ran && self.ran_at_the_stop, self.source_resumes) {
                (true, true) => self.resume(Side::Source),
                (true, false) => {}
                (false, _) => self.source.run = "paused".to_owned(),
            }
        }
    }

    /// The source's migration fails; it resumes.
    pub fn fail_source(&mut self) {
        if !self.source.is_alive() {
            return;
        }
        self.source.error = Some("Sibling indicated error 1");
        self.enter(Side::Source, "failed");
        self.leave_finish_migrate();
    }

    pub(super) fn fail_destination(&mut self) {
        if self.destination.is_migrating() && self.destination.is_alive() {
            self.destination.error = Some("load of migration failed");
            self.enter(Side::Destination, "failed");
            if !has_exit_on_error(&self.destination.schema) {
                self.die(Side::Destination);
            }
        }
    }

    /// The destination is gone. A source that still sends notices that; in `pre-switchover` QEMU does not.
    pub(super) fn lose_destination(&mut self) {
        let is_sending = matches!(self.source.migration.as_deref(), Some("setup" | "active" | "device"));
        if is_sending && !self.leads_elsewhere {
            self.fail_source();
        }
    }

    pub(super) fn arrive(&mut self) {
        self.destination.run = "paused".to_owned();
        self.enter(Side::Destination, "completed");
    }

    /// The end of the migration, as after `migrate-continue`, whether the engine asked for it or somebody else.
    pub fn hand_over(&mut self) {
        if !self.source.is_migrating() {
            return;
        }
        match (self.source.is_alive(), self.destination.is_alive()) {
            (true, true) => {}
            (true, false) => return self.fail_source(),
            (false, _) => return self.fail_destination(),
        }
        let complete_source = |state: &mut Self| {
            state.source.run = "postmigrate".to_owned();
            state.enter(Side::Source, "completed");
        };
        match self.after_continue {
            AfterContinue::Completes => {
                self.arrive();
                complete_source(self);
            }
            AfterContinue::DestinationFails => {
                self.fail_destination();
                self.fail_source();
            }
            AfterContinue::DestinationCloses => self.die(Side::Destination),
            AfterContinue::DestinationClosesLate => {
                complete_source(self);
                self.die(Side::Destination);
            }
            AfterContinue::DestinationFreezes => complete_source(self),
            AfterContinue::SourceDies => {
                self.arrive();
                self.die(Side::Source);
            }
            AfterContinue::SourceResumesAndDies => {
                self.arrive();
                self.fail_source();
                self.die(Side::Source);
            }
        }
    }

    /// Sends RAM for one tick. True once the rest fits into `downtime-limit`.
    pub(super) fn send_ram(&mut self) -> bool {
        let rate = self.source.ram as f64 / self.ram_takes.as_secs_f64();
        let number = |name: &str| self.source.parameters[name].as_f64().unwrap();
        let passes_by = self.zero_pages && self.source.parameters["zero-page-detection"] != "none";
        let sent = match self.heeds_max_bandwidth && !passes_by {
            true => rate.min(number("max-bandwidth")) * TICK.as_secs_f64(),
            false => rate * TICK.as_secs_f64(),
        };
        let tail = rate * number("downtime-limit") / 1000.0;
        let now = &mut self.sent;
        let sent = (sent as u64).min(now.remaining);
        now.processed += sent;
        now.remaining -= sent;
        now.dirtied = (now.dirtied + (sent as f64 * self.dirtied_share) as u64).min(self.source.ram);
        if now.remaining as f64 > tail {
            return false;
        }
        // QEMU fetches the dirty bitmap again before it believes that the rest fits.
        (now.remaining, now.dirtied, now.passes) =
            ((now.remaining + now.dirtied).min(self.source.ram), 0, now.passes + 1);
        now.remaining as f64 <= tail
    }

    pub(super) fn start_mirror(&mut self, id: String, node: &str, shared: SharedPair) {
        let start = self.starts.entry(id.clone()).or_default();
        *start += 1;
        let (start, stopped) = (*start, self.source.run != "running");
        let count = (self.guard_counts)(&id, start, stopped);
        match (count, self.source.bitmaps.get_mut(node)) {
            (Some(count), Some(bitmap)) => bitmap.1 = count,
            (None, _) => drop(self.source.bitmaps.remove(node)),
            (Some(_), None) => {}
        }
        self.source.jobs.push(MirrorJob::new(&id, "created", self.len));
        for status in ["created", "running"] {
            self.job(&id, status);
        }
        if self.added_share < 1.0 {
            tokio::spawn(async move { shared.copy(id, start).await });
        }
        if self.len == 0 {
            self.job(&self.source.jobs.last().unwrap().id.clone(), "ready");
        }
    }

    /// A job enters a status. The id may be given without the prefix and the id of its run, as `mirror-0`.
    pub fn job(&mut self, id: &str, status: &'static str) {
        let found = self.source.jobs.iter_mut().find(|job| job.is_called(id));
        let id = found.map_or(id.to_owned(), |job| {
            job.status = status;
            job.id.clone()
        });
        self.emit(Side::Source, "JOB_STATUS_CHANGE", json!({"id": id, "status": status}));
    }

    pub(super) fn end_mirror(&mut self, id: &str, force: bool) -> Result<(), &'static str> {
        let job = self.source.jobs.iter().find(|job| job.id == id).ok_or("Job not found")?;
        if job.status == "concluded" {
            return Err("Job in state 'concluded' cannot accept command verb 'cancel'");
        }
        let number: usize = id.rsplit('-').next().unwrap().parse().unwrap();
        let ready = job.status == "ready";
        let how = if force || !ready { MirrorEnd::NotReady } else { self.mirror_ends[number] };
        self.conclude(id, how);
        Ok(())
    }

    /// Another client sends `block-job-complete`: the guest's device gets the mirror's target for its root.
    pub fn pivot(&mut self, id: &str) {
        let job = self.source.jobs.iter().find(|job| job.is_called(id)).unwrap();
        self.source.pivoted.push(job.id.replace("mirror", "target"));
        self.conclude(id, MirrorEnd::Well);
    }

    /// A job ends. The id may be short, as for [`Self::job`].
    pub fn conclude(&mut self, id: &str, how: MirrorEnd) {
        if how == MirrorEnd::Never {
            return;
        }
        let (event, error) = match how {
            MirrorEnd::NotReady => ("BLOCK_JOB_CANCELLED", Some("Operation canceled")),
            MirrorEnd::Error | MirrorEnd::ErrorInQueryOnly => ("BLOCK_JOB_COMPLETED", Some("Input/output error")),
            _ => ("BLOCK_JOB_COMPLETED", None),
        };
        let found = self.source.jobs.iter_mut().find(|job| job.is_called(id));
        let id = &found.map_or(id.to_owned(), |job| {
            job.error = error.map(str::to_owned);
            job.id.clone()
        });
        let mut data = json!({"device": id, "len": 1, "offset": 1, "speed": 0, "type": "mirror"});
        if how == MirrorEnd::Error {
            data["error"] = json!(error);
        }
        self.emit(Side::Source, event, data);
        self.job(id, "concluded");
        if how == MirrorEnd::Vanished {
            self.source.jobs.retain(|job| job.id != *id);
        }
    }
}

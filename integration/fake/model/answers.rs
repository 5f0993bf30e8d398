//! The answers of the two QEMUs to commands, and what a command does to their common state.

use qferry::internals::progress::Side;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::qemu::{CPU, base, node};
use super::schema::{has_block_job_change, has_exit_on_error};
use super::{CommandFault, CommandHook, PairState, SharedPair};
use crate::fake::{AnswerStep, ReceivedCommand};

impl SharedPair {
    /// The answer of a QEMU to a command, also where a test overrides that answer.
    pub fn answer(&self, side: Side, seen: &ReceivedCommand) -> Vec<AnswerStep> {
        let hooks: Vec<CommandHook> = {
            let mut state = self.state();
            let (due, rest) = std::mem::take(&mut state.hooks)
                .into_iter()
                .partition::<Vec<_>, _>(|(at, command, _)| *at == side && *command == seen.name);
            state.hooks = rest;
            due.into_iter().map(|(_, _, hook)| hook).collect()
        };
        hooks.into_iter().for_each(|hook| hook());
        let fault = self.state().fault(side);
        match fault {
            Some(CommandFault::Refused) => return vec![AnswerStep::error("no")],
            Some(CommandFault::Lost) => return Vec::new(),
            Some(CommandFault::DiesBefore) => {
                self.state().die(side);
                return Vec::new();
            }
            Some(CommandFault::Closes) => {
                self.state().close(side);
                return Vec::new();
            }
            Some(CommandFault::Mute) => drop(self.state().mute_sides.insert(side)),
            Some(CommandFault::Cancel) => self.state().control.as_ref().unwrap().cancel(),
            Some(CommandFault::Unanswered | CommandFault::Dies) | None => {}
        }
        let answer = match self.carry_out(side, seen) {
            Ok(value) if seen.name == "quit" => vec![AnswerStep::Return(value), AnswerStep::Close],
            Ok(value) => vec![AnswerStep::Return(value)],
            Err(desc) => vec![AnswerStep::error(desc)],
        };
        if fault == Some(CommandFault::Dies) {
            self.state().die(side);
        }
        let answered = !matches!(fault, Some(CommandFault::Unanswered | CommandFault::Dies))
            && !self.state().mute_sides.contains(&side);
        if answered { answer } else { Vec::new() }
    }

    fn carry_out(&self, side: Side, seen: &ReceivedCommand) -> Result<Value, &'static str> {
        let mut state = self.state();
        let text = |key: &str| seen.arguments[key].as_str().unwrap_or_default().to_owned();
        if let Some(answer) = state.question(side, &seen.name) {
            return Ok(answer);
        }
        if seen.name == "qom-get" {
            return state.qemu(side).property(&text("path"), &text("property")).ok_or("no such property");
        }
        if seen.name == "qom-list" {
            return Ok(state.qemu(side).properties(&text("path")));
        }
        match seen.name.as_str() {
            "migrate-set-capabilities" if state.qemu(side).is_migrating() => {
                return Err("There's a migration process in progress");
            }
            "migrate-set-capabilities" => {
                for capability in seen.arguments["capabilities"].as_array().unwrap() {
                    let (name, on) = (capability["capability"].as_str().unwrap(), capability["state"] == true);
                    *state.qemu(side).capabilities.get_mut(name).ok_or("no such capability")? = on;
                }
            }
            "migrate-set-parameters" => {
                let given = seen.arguments.as_object().unwrap().clone();
                state.qemu(side).parameters.extend(given);
            }
            "cancel-vcpu-dirty-limit" => {}
            "nbd-server-start" => state.qemu(side).server = true,
            "block-export-add" => state.qemu(side).exports.push(text("id")),
            "block-export-del" => state.qemu(side).exports.retain(|id| *id != text("id")),
            "nbd-server-stop" if !state.qemu(side).server => return Err("NBD server not running"),
            "nbd-server-stop" => {
                state.qemu(side).server = false;
                if !state.exports_linger {
                    for id in std::mem::take(&mut state.qemu(side).exports) {
                        state.emit(side, "BLOCK_EXPORT_DELETED", json!({ "id": id }));
                    }
                }
            }
            "block-dirty-bitmap-add" => {
                state.qemu(side).bitmaps.insert(text("node"), (text("name"), 0));
            }
            "block-dirty-bitmap-remove" => {
                state.qemu(side).bitmaps.remove(&text("node")).ok_or("Dirty bitmap not found")?;
            }
            "drive-mirror" => {
                let shared = self.clone();
                state.start_mirror(text("job-id"), &text("device"), shared);
            }
            "block-job-change" => {
                let id = text("id");
                let (copies, writes_on) = (state.mirror_takes, state.added_share);
                let job = state.source.jobs.iter_mut().find(|job| job.id == id).ok_or("Job not found")?;
                job.when_switched = job.copied(copies, writes_on);
                job.write_blocking = true;
                // The guest's writes wait from now on, so the rest takes as long as the copy of a disk that nobody
                // writes to.
                job.began = Instant::now();
                let shared = self.clone();
                let start = state.starts[&id];
                tokio::spawn(async move { shared.copy(id, start).await });
            }
            "block-job-set-speed" => {
                let id = text("device");
                state.source.jobs.iter().find(|job| job.id == id).ok_or("Job not found")?;
            }
            "block-job-cancel" => state.end_mirror(&text("device"), seen.arguments["force"] == true)?,
            "job-dismiss" => {
                let id = text("id");
                let at = state.source.jobs.iter().position(|job| job.id == id).ok_or("Job not found")?;
                state.source.jobs.remove(at);
                state.emit(side, "JOB_STATUS_CHANGE", json!({"id": id, "status": "null"}));
            }
            "migrate-incoming" => {
                if !seen.arguments["exit-on-error"].is_null() && !has_exit_on_error(&state.qemu(side).schema) {
                    return Err("Parameter 'exit-on-error' is unexpected");
                }
                state.enter(side, "setup");
            }
            "migrate" if state.source.run == "postmigrate" => {
                return Err("Can't migrate the vm that was paused due to previous migration");
            }
            "migrate" => {
                state.enter(Side::Source, "setup");
                state.enter(Side::Destination, "active");
                let shared = self.clone();
                tokio::spawn(async move { shared.precopy().await });
            }
            "migrate_cancel" => {
                if state.source.is_migrating() {
                    state.enter(Side::Source, "cancelling");
                    state.fail_destination();
                    state.leave_finish_migrate();
                    state.enter(Side::Source, "cancelled");
                }
            }
            "migrate-continue" if state.source.migration.as_deref() != Some("pre-switchover") => {
                return Err("Migration not in expected state");
            }
            "migrate-continue" => {
                if state.source.jobs.iter().any(|job| job.status != "concluded" || job.error.is_some()) {
                    state.violations.push("continued without every write");
                }
                if !state.destination.exports.is_empty() {
                    state.violations.push("continued with an export open");
                }
                state.enter(Side::Source, "device");
                let shared = self.clone();
                let slow = state.last_ram_takes;
                tokio::spawn(async move {
                    if !slow.is_zero() {
                        sleep(slow).await;
                    }
                    shared.state().hand_over();
                });
            }
            "stop" => state.stop(side),
            "cont" if side == Side::Source && state.source.is_migrating() => {
                return Err("Migration is not finalized yet");
            }
            "cont" => state.resume(side),
            "quit" => {
                if state.qemu(side).run == "running" {
                    state.violations.push("a running guest was ended");
                }
                state.emit(side, "SHUTDOWN", json!({"guest": false, "reason": "host-qmp-quit"}));
                state.qemu(side).end();
                if side == Side::Destination {
                    state.lose_destination();
                }
            }
            other => panic!("the model does not know {other}"),
        }
        Ok(json!({}))
    }
}

impl PairState {
    fn question(&mut self, side: Side, name: &str) -> Option<Value> {
        let qemu = self.qemu(side);
        Some(match name {
            "query-qmp-schema" => qemu.schema.clone(),
            "query-status" => json!({"running": qemu.run == "running", "status": qemu.run, "x-new": []}),
            "query-migrate" => {
                let sent = self.sent;
                self.qemu(side).query_migrate(sent)
            }
            "query-migrate-capabilities" => {
                let list = qemu.capabilities.iter().map(|(name, on)| json!({"capability": name, "state": on}));
                list.collect()
            }
            "query-migrate-parameters" => Value::Object(qemu.parameters.clone()),
            "query-block" => {
                let list = qemu.disks.iter().map(|disk| {
                    let qdev = format!("/machine/peripheral/{}/virtio-backend", disk.name);
                    json!({"device": "", "qdev": qdev, "inserted": node(disk, None), "x-new": 1})
                });
                list.collect()
            }
            "query-blockstats" => {
                let list = qemu.disks.iter().map(|disk| {
                    let qdev = format!("/machine/peripheral/{}/virtio-backend", disk.name);
                    let stats = json!({"wr_bytes": 0, "wr_operations": 0, "wr_total_time_ns": 0, "x-new": 1});
                    json!({"device": "", "qdev": qdev, "node-name": format!("node-{}", disk.name), "stats": stats})
                });
                list.collect()
            }
            "query-named-block-nodes" => {
                let list = qemu
                    .disks
                    .iter()
                    .flat_map(|disk| [node(disk, qemu.bitmaps.get(&format!("node-{}", disk.name))), base(disk)]);
                let target = |name: &String| json!({"node-name": name, "drv": "raw", "ro": false, "image": {"virtual-size": qemu.disks[0].size}});
                list.chain(qemu.pivoted.iter().map(target)).collect()
            }
            "query-jobs" => {
                let list = qemu.jobs.iter().map(|job| {
                    let mut told =
                        json!({"id": job.id, "status": job.status, "type": "mirror", "current-progress": job.len});
                    if let Some(error) = &job.error {
                        told["error"] = json!(error);
                    }
                    told
                });
                list.collect()
            }
            "query-block-jobs" => {
                let synced = has_block_job_change(&qemu.schema);
                let (copies, writes_on) = (self.mirror_takes, self.added_share);
                let list = self.qemu(side).jobs.iter().map(|job| {
                    let ready = job.status == "ready";
                    let (copied, added) = job.copied(copies, writes_on);
                    let len = job.len + added;
                    let mut told = json!({"device": job.id, "status": job.status, "type": "mirror", "len": len,
                        "offset": if ready { len } else { copied }, "ready": ready});
                    if synced {
                        told["actively-synced"] = json!(ready && job.write_blocking);
                    }
                    if let Some(error) = &job.error {
                        told["error"] = json!(error);
                    }
                    told
                });
                list.collect()
            }
            "query-block-exports" => {
                let list = qemu.exports.iter().map(|id| json!({"id": id, "type": "nbd", "shutting-down": false}));
                list.collect()
            }
            "query-memory-size-summary" => json!({"base-memory": qemu.ram, "plugged-memory": 0}),
            "query-version" => json!({"qemu": {"major": 10, "minor": 0, "micro": 13}, "package": "fake"}),
            "query-cpus-fast" => json!([{"cpu-index": 0, "qom-path": CPU, "thread-id": 7, "x-new": 1}]),
            "x-query-ramblock" => {
                let (head, size) = ("Block Name    PSize  Offset  Used  Total\n", qemu.ram);
                json!({"human-readable-text": format!("{head}pc.ram    4 KiB  0x0 {size:#x} {size:#x}\n")})
            }
            "query-hotpluggable-cpus" => json!([{"props": {"core-id": 0}, "vcpus-count": 1, "qom-path": CPU}]),
            "human-monitor-command" => json!("bus: main-system-bus\n  type System\n"),
            "query-pci" => json!([]),
            "x-debug-query-block-graph" => json!({"nodes": [], "edges": [], "x-new": 1}),
            _ => return None,
        })
    }
}

//! Calls of the command `virsh`.
//!
//! Owns the child: its deadline, after which it is killed, and the bounds of what it prints. No shell is involved.

use super::{
    virsh_domain::VirshDomain,
    virsh_words::{VirshError, answers, told},
};
use serde_json::{Map, Value};
use std::{io, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    time::timeout,
};

/// The time for the answers to some commands. A daemon on another host is reached by ssh, which takes its time.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// The time for a question that libvirt answers without QEMU.
const CONTROL: Duration = Duration::from_secs(1);
/// The time for libvirt to end a migration.
const ABORT: Duration = Duration::from_secs(30);
/// The most bytes that are read of what a call prints.
const OUTPUT: u64 = 32 << 20;
const WORDS: u64 = 16 << 10;

/// What a call has printed.
struct Printed {
    success: bool,
    stdout: String,
    stderr: String,
}

/// `virsh` for the daemon of a domain, with one argument that holds what is to be done.
pub(super) fn virsh(domain: &VirshDomain, script: &str) -> Command {
    let mut command = Command::new("virsh");
    command.arg("-q");
    if let Some(uri) = domain.uri() {
        command.args(["-c", uri]);
    }
    command.arg("--").arg(script).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// An error at the start of `virsh`.
pub(super) fn not_started(error: io::Error) -> VirshError {
    match error.kind() {
        io::ErrorKind::NotFound => VirshError::Missing,
        _ => VirshError::Start(error),
    }
}

/// Runs a call to its end; `None` where it was killed because it was late.
async fn call(domain: &VirshDomain, script: &str, deadline: Duration) -> Result<Option<Printed>, VirshError> {
    let mut child = virsh(domain, script).spawn().map_err(not_started)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let run = async {
        let (stdout, stderr) = tokio::join!(bounded(stdout, OUTPUT), bounded(stderr, WORDS));
        let success = child.wait().await.is_ok_and(|status| status.success());
        Printed { success, stdout, stderr }
    };
    // a child whose deadline has passed is killed with the end of this function
    Ok(timeout(deadline, run).await.ok())
}

async fn bounded(output: Option<impl AsyncRead + Unpin>, most: u64) -> String {
    let mut bytes = Vec::new();
    if let Some(output) = output {
        // what came before an error counts
        output.take(most).read_to_end(&mut bytes).await.ok();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends some commands, each in JSON, to the monitor of a domain in one call. An answer that did not come is the error.
pub(super) async fn ask(
    domain: &VirshDomain,
    commands: &[String],
) -> Result<Vec<Result<Map<String, Value>, VirshError>>, VirshError> {
    let Some(printed) = call(domain, &domain.commands(commands), ANSWER).await? else {
        return Err(VirshError::late(domain, ANSWER, control(domain).await));
    };
    let refusal = || VirshError::of_words(domain, &printed.stderr);
    Ok(answers(&printed.stdout, commands.len()).into_iter().map(|answer| answer.ok_or_else(refusal)).collect())
}

/// What libvirt says of its use of the monitor, which it knows without asking QEMU.
async fn control(domain: &VirshDomain) -> Option<String> {
    match call(domain, &domain.verb("domcontrol", ""), CONTROL).await {
        Ok(Some(Printed { success: true, stdout, .. })) => Some(told(&stdout)),
        _ => None,
    }
}

/// Has libvirt end its own job on a domain, such as a migration.
pub(in crate::diagnosis) async fn abort_job(domain: &VirshDomain) -> Result<(), String> {
    let told = |error: VirshError| crate::progress::describe(&error);
    match call(domain, &domain.verb("domjobabort", ""), ABORT).await.map_err(told)? {
        Some(printed) if printed.success => Ok(()),
        Some(printed) => Err(VirshError::of_words(domain, &printed.stderr).to_string()),
        None => Err(VirshError::late(domain, ABORT, control(domain).await).to_string()),
    }
}

//! Two network namespaces with a link between them, which end with the sweep, however it ends.
//!
//! Owns the processes that hold them. The namespaces have no name: nothing is left once these processes and the QEMUs
//! in them are gone.

use super::{
    link::{LinkEnd, LinkStep, LinkWays, carried, joining, missing_programs, no_namespace, shaping},
    spec::SweepLink,
    started_qemu::{TrialError, last_line},
};
use std::{ffi::OsString, fs, path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, Command},
    time::timeout,
};

/// The time of a command. Each takes some milliseconds on a host that is not busy.
const COMMAND: Duration = Duration::from_secs(60);

/// The two hosts.
#[derive(Debug)]
pub(crate) struct JoinedHosts {
    ways: LinkWays,
    first: NamespaceHolder,
    second: NamespaceHolder,
    /// What the link is shaped to.
    shaped: SweepLink,
}

/// A process that does nothing but hold a namespace.
#[derive(Debug)]
struct NamespaceHolder {
    pid: u32,
    _child: Child,
    /// The process ends once nobody has this any more: also where the sweep is killed.
    _stdin: ChildStdin,
}

impl JoinedHosts {
    /// Makes the hosts and joins them.
    ///
    /// # Errors
    /// A program or a part of the kernel is missing, or something is not permitted; with the remedy.
    pub(crate) async fn start() -> Result<Self, TrialError> {
        let path = search_path();
        let is_there = |program: &str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
        if let Some(missing) = missing_programs(is_there) {
            return Err(TrialError::Other(missing));
        }
        let ways = LinkWays { is_root: rustix::process::geteuid().is_root() };
        let hold = async |first| {
            let held = NamespaceHolder::start(&ways.hold(first)).await;
            held.map_err(|said| TrialError::Other(no_namespace(&said, ways.is_root)))
        };
        let first = hold(None).await?;
        let second = hold(Some(first.pid)).await?;
        let hosts = Self { ways, first, second, shaped: SweepLink::default() };
        hosts.take(joining(hosts.second.pid)).await?;
        Ok(hosts)
    }

    /// Shapes the link.
    ///
    /// # Errors
    /// The kernel cannot, with the remedy.
    pub(crate) async fn shape(&mut self, link: &SweepLink) -> Result<(), TrialError> {
        if self.shaped != *link {
            self.take(shaping(link)).await?;
            self.shaped = link.clone();
        }
        Ok(())
    }

    /// Whether the hosts are in a user namespace.
    pub(crate) fn are_of_a_user(&self) -> bool {
        !self.ways.is_root
    }

    /// The words before a program that is to run at an end.
    pub(crate) fn enter(&self, end: LinkEnd) -> Vec<String> {
        self.ways.enter(match end {
            LinkEnd::First => self.first.pid,
            LinkEnd::Second => self.second.pid,
        })
    }

    /// The bytes that the link has carried so far, in both directions.
    pub(crate) fn carried(&self) -> Option<u64> {
        carried(&fs::read_to_string(format!("/proc/{}/net/dev", self.first.pid)).ok()?)
    }

    async fn take(&self, steps: Vec<LinkStep>) -> Result<(), TrialError> {
        for step in steps {
            let words: Vec<String> = self.enter(step.end).into_iter().chain(step.words.clone()).collect();
            let ended = timeout(COMMAND, command(&words).output()).await;
            let said = match ended {
                Ok(Ok(output)) if output.status.success() => continue,
                Ok(Ok(output)) => last_line(&output.stderr),
                Ok(Err(error)) => error.to_string(),
                Err(_) => return Err(TrialError::Other(format!("{} does not end", words.join(" ")))),
            };
            return Err(TrialError::Other(step.refused(&said)));
        }
        Ok(())
    }
}

impl NamespaceHolder {
    /// Starts a holder, and waits until it is where it is to be.
    ///
    /// # Errors
    /// What it said.
    async fn start(words: &[String]) -> Result<Self, String> {
        let mut child = command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is the sweep's to answer.
            .process_group(0)
            .spawn()
            .map_err(|error| error.to_string())?;
        let (Some(mut stdin), Some(mut stdout), Some(mut stderr), Some(pid)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take(), child.id())
        else {
            return Err("it has no pipes".into());
        };
        let answer = async {
            // One that could not begin has closed its input: that is seen below.
            stdin.write_all(b"\n").await.ok();
            let mut byte = [0];
            if stdout.read_exact(&mut byte).await.is_ok() {
                return Ok(());
            }
            let mut said = Vec::new();
            stderr.read_to_end(&mut said).await.ok();
            Err(last_line(&said))
        };
        timeout(COMMAND, answer).await.map_err(|_| format!("{} does not begin", words.join(" ")))??;
        Ok(Self { pid, _child: child, _stdin: stdin })
    }
}

/// A command that is killed where it is given up.
fn command(words: &[String]) -> Command {
    let mut command = Command::new(words.first().map_or("nsenter", String::as_str));
    command.args(words.get(1..).unwrap_or_default()).env("PATH", search_path()).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Where programs are looked for: also where the system keeps those of its administrator, which users may run as well.
fn search_path() -> OsString {
    let own = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&own).chain(["/usr/sbin", "/sbin"].map(|folder| Path::new(folder).to_owned()));
    // a folder that has come out of the variable can go into it again
    std::env::join_paths(folders).unwrap_or(own)
}

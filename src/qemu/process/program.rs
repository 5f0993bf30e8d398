//! The process and the program of a QEMU, and the features that it has.
//!
//! The question for features is the one question that a guest feels: QEMU's main loop puts the schema together for tens
//! of milliseconds, and a vCPU that needs the loop meanwhile stands still. So a QEMU with a guest is not asked where
//! another answers for it that is proved to be the same program.

use super::Process;
use crate::{
    endpoint::{PeerPid, UnseenProcess},
    qemu::{Features, ProcessError, schema::Schema},
};
use qapi::{
    Command,
    qmp::{query_cpus_fast, query_qmp_schema},
};
use serde_json::{Value, json};

impl Process {
    /// Reads the features from the schema.
    ///
    /// # Errors
    /// QEMU does not tell its schema, or the schema cannot be read.
    pub async fn read_features(self) -> Result<Self, ProcessError> {
        const COMMAND: &str = query_qmp_schema::NAME;
        let line = match self.client.execute_unread(&query_qmp_schema {}, super::ASK).await {
            Ok(Value::String(line)) => line,
            Ok(answer) => json!({"return": answer}).to_string(),
            Err(source) => return Err(ProcessError::Execute { at: self.name, command: COMMAND, source }),
        };
        match Schema::read(&line) {
            Ok(schema) => Ok(Self { features: Features::read(&schema), ..self }),
            Err(source) => Err(ProcessError::Answer { at: self.name, command: COMMAND, source }),
        }
    }

    /// The same QEMU without the process that the kernel names for its socket, where the threads of the vCPUs are not
    /// that process's: a forwarder has made the socket then, and runs another QEMU by now, or another QEMU has its pid.
    pub async fn without_a_strangers_process(self) -> Self {
        let Some(peer) = self.peer.as_ref() else { return self };
        let threads = self.vcpu_threads().await;
        if threads.is_empty() || peer.has_threads(threads) != Some(false) {
            return self;
        }
        tracing::info!(qemu = %self.name, pid = peer.pid(), "another QEMU has made the socket of this one");
        let unseen = Some(UnseenProcess::OtherQemu { pid: peer.pid() });
        Self { peer: None, unseen, ..self }
    }

    /// The ids that the threads of the vCPUs have on QEMU's host, by the first answer: no other process there has the
    /// same ones at that time. Empty where QEMU does not tell.
    pub async fn vcpu_threads(&self) -> &[i64] {
        if self.threads.get().is_none() {
            if let Ok(cpus) = self.ask(&query_cpus_fast {}).await {
                let threads = cpus.0.into_iter().filter_map(|cpu| cpu.thread_id).collect();
                return self.threads.get_or_init(|| threads);
            }
        }
        self.threads.get().map_or(&[], Vec::as_slice)
    }

    /// The reason why there is no process behind the monitor's socket, where that is known.
    pub fn unseen(&self) -> Option<&UnseenProcess> {
        self.unseen.as_ref()
    }

    /// The same QEMU, with the reason why its process is not known.
    #[must_use]
    pub fn with_unseen(self, unseen: Option<UnseenProcess>) -> Self {
        Self { unseen, ..self }
    }

    /// The same QEMU with the features of another that is the same program; see [`Process::is_same_program`].
    #[must_use]
    pub fn with_features_of(self, other: &Self) -> Self {
        Self { features: other.features.clone(), ..self }
    }

    /// Whether both processes are proved to run the same file, and greet alike.
    pub fn is_same_program(&self, other: &Self) -> bool {
        let emulator = |process: &Self| process.peer.as_ref().and_then(PeerPid::emulator);
        let greets_alike = self.client.greeting().is_some_and(|greeting| other.client.greeting() == Some(greeting));
        greets_alike && emulator(self).is_some_and(|file| emulator(other) == Some(file))
    }
}

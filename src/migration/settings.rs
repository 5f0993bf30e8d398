//! What a user can ask of a migration.

use crate::{
    convergence::Policy,
    endpoint::Address,
    memory::tuning::{Compression, MigrationTuning, ThrottleMode},
    quantity::{Rate, duration},
    run_id::RunId,
    storage::{model::layout::DiskSelection, verify::identity::ProofLevel},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, path::PathBuf, time::Duration};

/// The longest from STOP to a guest that runs, where nothing else is said.
pub const SWITCHOVER: Duration = Duration::from_secs(10);

/// How long a fence command may take, where nothing else is said.
pub const FENCE: Duration = Duration::from_secs(30);

/// Where a journal is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum JournalPlace {
    /// In the state directory (`$XDG_STATE_HOME/qferry`, else `~/.local/state/qferry`), under a name of its own. It is
    /// removed once the migration has ended and nothing is left to be done.
    #[default]
    StateDirectory,
    /// In this file, which must not be there yet. It is left there.
    File(PathBuf),
    /// Nowhere: if the engine dies, only a person can tell what is to be done.
    Nowhere,
}

/// What a user can ask of a migration. The default moves every writable disk with a downtime budget of 300 ms, as fast
/// as the link allows.
///
/// With serde each field is read and written under its own name, and may be left out; times, rates and sizes are text
/// with their units. More fields may be added: take the default and set what differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Settings {
    /// Which disks move.
    pub selection: DiskSelection,
    /// The budget of the whole blackout, 1 ms to 2000 s. QEMU's own `downtime-limit` begins low, and is raised within
    /// it.
    #[serde(with = "duration")]
    pub downtime: Duration,
    /// Hold the budget as it stands: a guest that was stopped goes back to the source for each millisecond beyond it.
    /// Otherwise the policy's slack is allowed.
    pub strict_budget: bool,
    /// The whole job's ceiling on the wire: it is shared out among the mirrors, then given to RAM.
    pub bandwidth: Option<Rate>,
    /// A ceiling for all the mirrors together, below `bandwidth`.
    pub disk_bandwidth: Option<Rate>,
    /// What may be done so that disks and RAM converge.
    pub policy: Policy,
    /// How many channels RAM is sent over, where it is to be more than one.
    pub multifd: Option<u8>,
    /// How those channels compress.
    pub compress: Option<Compression>,
    /// Give up and roll back when the guest has not been stopped for the switchover after this long.
    #[serde(with = "duration::option")]
    pub timeout: Option<Duration>,
    /// The longest from the guest's STOP until it runs somewhere, or is clearly not known to; by default
    /// [`SWITCHOVER`], or four times the blackout budget where that is more.
    #[serde(with = "duration::option")]
    pub switchover_timeout: Option<Duration>,
    /// An executable that makes sure that a side that does not answer cannot run the guest, called with `source` or
    /// `destination`, its address, and the reason; exit code 0 says that it is fenced. Processes of this host are ended
    /// without it.
    pub fence_command: Option<PathBuf>,
    /// How long the fence command may take, 1 s to 1 year: [`FENCE`] by default. A command that takes longer is killed,
    /// and the side counts as not fenced. The guest may stand still meanwhile, however short `switchover_timeout` is.
    #[serde(with = "duration")]
    pub fence_timeout: Duration,
    /// Where it is noted what is done, so that another engine can take it up after this one died.
    pub journal: JournalPlace,
    /// Where the destination listens for RAM; with two local QEMUs a unix socket in `runtime_dir` by default.
    pub migrate_address: Option<Address>,
    /// Where the destination listens for NBD; the same default.
    pub nbd_address: Option<Address>,
    /// Where the source listens for NBD while its backing files are read; with a local source a unix socket in
    /// `runtime_dir` by default.
    pub source_nbd_address: Option<Address>,
    /// How well the destination's backing files are proved to be the source's.
    pub verify_backing: ProofLevel,
    /// How many ranges of 64 KiB a sample has.
    pub samples: usize,
    /// What the ranges are chosen from; another one each time by default.
    pub sample_seed: Option<u64>,
    /// Keep a digest that had to be read in full beside its image.
    pub keep_digests: bool,
    /// Count only what is copied now against the destination's free space, not the disks' virtual sizes.
    pub overcommit: bool,
    /// Remove first what an earlier try of an engine left in the two QEMUs. No other engine may be at work on them.
    pub clean: bool,
    /// Measure, after every check has passed, what a prediction needs: how fast the guest dirties RAM and writes to its
    /// disks, and how much arrives at the destination. It takes 1.5 to 5 s, and for a part of it there is an
    /// export of nothing on the destination that zeros are sent to.
    pub predict: bool,
    /// Allow a listening address that is not a loopback one, without TLS.
    pub allow_plaintext: bool,
    /// The blockers that the preflight is to pass over, by code; where that can be forced.
    pub force: BTreeSet<String>,
    /// Leave the source process there, stopped, instead of quitting it.
    pub keep_source: bool,
    /// Have both QEMUs log how long each device takes in the blackout, where their logs are files that can be read.
    /// Their trace events are put back as they were.
    pub device_times: bool,
    /// Where sockets of this run are made. Both QEMUs must be able to reach it.
    pub runtime_dir: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            selection: DiskSelection::default(),
            downtime: Duration::from_millis(300),
            strict_budget: false,
            bandwidth: None,
            disk_bandwidth: None,
            policy: Policy::default(),
            multifd: None,
            compress: None,
            timeout: None,
            switchover_timeout: None,
            fence_command: None,
            fence_timeout: FENCE,
            journal: JournalPlace::default(),
            migrate_address: None,
            nbd_address: None,
            source_nbd_address: None,
            verify_backing: ProofLevel::default(),
            samples: 64,
            sample_seed: None,
            keep_digests: false,
            overcommit: false,
            clean: false,
            predict: false,
            allow_plaintext: false,
            force: BTreeSet::new(),
            keep_source: false,
            device_times: true,
            runtime_dir: default_runtime_dir(),
        }
    }
}

impl Settings {
    /// What is wanted of QEMU's migration, where the named bitmaps move with the guest or do not.
    pub(crate) fn tuning(&self, bitmaps: bool) -> MigrationTuning {
        let policy = &self.policy;
        let throttle = match &policy.schedule {
            Some(schedule) if schedule.auto_converge && !policy.observe => ThrottleMode::OwnSteps(policy.throttle_max),
            _ if policy.may_throttle() => ThrottleMode::OnDemand,
            _ => ThrottleMode::Never,
        };
        MigrationTuning {
            multifd: self.multifd,
            compress: self.compress,
            xbzrle: policy.xbzrle.filter(|_| !policy.observe),
            throttle,
            postcopy: policy.may_postcopy(),
            // the order of a run knows what both builds have
            preempt: false,
            bitmaps,
            downtime: policy.first_limit(self.downtime),
            bandwidth: self.bandwidth,
        }
    }

    /// The longest from STOP to a guest that runs, or that is clearly not known to.
    pub fn switchover_limit(&self) -> Duration {
        self.switchover_timeout.unwrap_or_else(|| SWITCHOVER.max(self.downtime.saturating_mul(4)))
    }

    /// The file of the journal, where there is to be one; `id` tells this run from others.
    pub(crate) fn journal_file(&self, run: &RunId) -> Option<PathBuf> {
        match &self.journal {
            JournalPlace::StateDirectory => Some(state_dir().join(format!("{run}.journal"))),
            JournalPlace::File(path) => Some(path.clone()),
            JournalPlace::Nowhere => None,
        }
    }

    /// The folder of a journal that the user named.
    pub(crate) fn journal_folder(&self) -> Option<PathBuf> {
        let JournalPlace::File(path) = &self.journal else { return None };
        std::path::absolute(path).ok()?.parent().map(PathBuf::from)
    }
}

/// `$XDG_RUNTIME_DIR/qferry`, else the state directory.
fn default_runtime_dir() -> PathBuf {
    variable("XDG_RUNTIME_DIR").map_or_else(state_dir, |directory| directory.join("qferry"))
}

/// `$XDG_STATE_HOME/qferry`, else `~/.local/state/qferry`. Never a directory below `/tmp`: another
/// user could make it first, and replace the files in it.
pub(super) fn state_dir() -> PathBuf {
    variable("XDG_STATE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("/run"))
        .join("qferry")
}

/// A directory that the environment names.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_asks_of_qemu_what_it_may_come_to() {
        let wanted = |name: &str| {
            let text = Policy::built_in(name).expect(name);
            Settings { policy: text.parse().expect(name), ..Settings::default() }.tuning(false)
        };
        for (name, throttle, postcopy, first) in [
            ("converge", ThrottleMode::OnDemand, false, 10),
            ("postcopy", ThrottleMode::Never, true, 10),
            ("patient", ThrottleMode::Never, false, 10),
            ("observe", ThrottleMode::Never, false, 300),
            ("nova", ThrottleMode::Never, false, 50),
            ("vdsm", ThrottleMode::OwnSteps(99), false, 100),
            ("kubevirt", ThrottleMode::Never, false, 150),
        ] {
            let wanted = wanted(name);
            let found = (wanted.throttle, wanted.postcopy, wanted.downtime);
            assert_eq!(found, (throttle, postcopy, Duration::from_millis(first)), "{name}");
        }
        let xbzrle = Some(crate::quantity::Bytes(1 << 26));
        let with = |observe| Policy { xbzrle, observe, ..Policy::default() };
        let asked = |policy| Settings { policy, ..Settings::default() }.tuning(false).xbzrle;
        assert_eq!((asked(with(false)), asked(with(true))), (xbzrle, None));
    }

    #[test]
    fn settings_are_read_as_they_are_written() {
        let settings = Settings {
            downtime: Duration::from_millis(50),
            bandwidth: Some(Rate(100 << 20)),
            timeout: Some(Duration::from_secs(90)),
            compress: Some(Compression::Zstd),
            journal: JournalPlace::File("/j".into()),
            nbd_address: Some("tcp:host:10809".parse().expect("an address")),
            force: ["machine-type".to_owned()].into(),
            ..Settings::default()
        };
        let text = serde_json::to_string(&settings).expect("written");
        for words in
            [r#""downtime":"50ms""#, r#""bandwidth":"100MiB/s""#, r#""timeout":"1m 30s""#, r#""journal":{"file":"/j"}"#]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert_eq!(serde_json::from_str::<Settings>(&text).expect("read"), settings);
        assert_eq!(serde_json::from_str::<Settings>("{}").expect("read"), Settings::default());
        for name in ["converge", "nova", "vdsm"] {
            let policy: Policy = Policy::built_in(name).expect(name).parse().expect(name);
            let text = serde_json::to_string(&policy).expect(name);
            assert_eq!(serde_json::from_str::<Policy>(&text).expect(name), policy, "{text}");
        }
        for (wrong, words) in [
            (r#"{"downtme":"50ms"}"#, "downtime"),
            (r#"{"downtime":50}"#, "50ms"),
            (r#"{"bandwidth":100}"#, "100MiB/s"),
            (r#"{"nbd_address":"host:10809"}"#, "tcp:HOST:PORT"),
        ] {
            let error = serde_json::from_str::<Settings>(wrong).expect_err(wrong).to_string();
            assert!(error.contains(words), "{wrong}: {error}");
        }
    }
}

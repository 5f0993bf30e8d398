//! The command line.

use super::{
    diagnose_options::Diagnose,
    exit,
    history::HistoryArguments,
    replay::ReplayArguments,
    sweep::SweepArguments,
    transcript::TranscriptArguments,
    values::{duration, policy},
    watch_options::WatchArguments,
};
use crate::{
    codes::FindingCode,
    convergence::Policy,
    endpoint::Address,
    memory::tuning::{CHANNELS_MAX, Compression},
    migration::{FENCE, JournalPlace, Settings},
    prepare::{PopulateMode, PrepareSettings},
    quantity::Rate,
    storage::{
        model::{
            layout::{DiskSelection, StorageMode},
            path_map::PathMap,
        },
        verify::identity::ProofLevel,
    },
};
use clap::{ArgAction, Parser, Subcommand, ValueEnum, builder::PossibleValuesParser};
use std::{ffi::OsString, path::PathBuf, process::ExitCode, str::FromStr, time::Duration};

/// The blackout budget where neither the user nor the policy has one.
const DOWNTIME: Duration = Duration::from_millis(300);
/// The heading of the options about disks.
const DISKS: &str = "Disks";

/// Moves a running QEMU guest, its memory and its local disks, to another QEMU process.
#[derive(Debug, Parser)]
#[command(name = "qferry", version, about, long_about = None, arg_required_else_help = true)]
#[command(after_help = "Start with: qferry migrate --help")]
pub struct Arguments {
    /// Log what happens below the surface to stderr; twice for every event, three times for everything
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub(super) verb: Verb,
}

impl Arguments {
    /// Reads the words of a command line, the program's name first.
    ///
    /// # Errors
    /// The exit code, where the words are wrong or ask for help alone; all is said then.
    pub fn read(words: &[OsString]) -> Result<Self, ExitCode> {
        Self::try_parse_from(words).map_err(|error| exit::refused_words(&error, words))
    }

    /// Looks whether words would be understood; the error says what is wrong with them.
    pub(super) fn check(words: &[String]) -> Result<(), String> {
        Self::try_parse_from(words).map(|_| ()).map_err(|error| exit::words_alone(&error))
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Move a guest and its disks from one QEMU to another that waits for it
    ///
    /// The destination must wait with -incoming defer -S and have, for each disk that moves, an overlay of exactly the
    /// same virtual size over the same backing file. Only what the source's overlay holds is sent. Until the guest is
    /// handed over, a failure ends with the guest on the source as before, and so does Ctrl-C; what could not be
    /// removed is named.
    #[command(after_help = EXAMPLES)]
    Migrate(Box<Options>),
    /// Look at both sides and say whether the guest could move; change nothing
    ///
    /// Takes the options of migrate and runs its preflight: every check, the disks of both sides next to each other,
    /// and the proof that the destination's backing files are the source's, for which read-only exports are opened
    /// for a moment. Where nothing is in the way, it measures for 1.5 to 5 s what the migration would meet: how fast
    /// the guest dirties RAM and writes to its disks, and, unless --bandwidth says it, how much arrives at the
    /// destination, for which zeros are sent to an export of nothing, as fast as they go. --no-measure leaves that
    /// out. Exit code 0: it could move; 3: it would be refused, and every reason is named.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Box<Options>),
    Prepare(Box<Prepare>),
    Recover(Box<Recover>),
    History(HistoryArguments),
    Transcript(TranscriptArguments),
    Replay(Box<ReplayArguments>),
    Diagnose(Box<Diagnose>),
    Watch(WatchArguments),
    Sweep(Box<SweepArguments>),
}

impl Verb {
    /// Whether stdout is for a program.
    pub(super) fn is_json(&self) -> bool {
        match self {
            Self::Migrate(options) | Self::Check(options) => options.json,
            Self::Prepare(options) => options.json,
            Self::Recover(options) => options.json,
            Self::History(options) => options.json,
            Self::Transcript(_) => false,
            Self::Replay(options) => options.json,
            Self::Diagnose(options) => options.json,
            Self::Watch(options) => options.json,
            Self::Sweep(options) => options.json,
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  Both QEMUs on this host, each with -qmp unix:PATH,server=on,wait=off, the destination
  started with -incoming defer -S on an overlay of the same size over the same backing file:
    qferry migrate --source /run/vm/source.qmp --destination /run/vm/destination.qmp

  See what would be done, and change nothing:
    qferry migrate --source /run/vm/source.qmp --destination /run/vm/destination.qmp --plan

  To another host, whose monitor is forwarded here; 10.0.0.2 is where it can be reached:
    qferry migrate --source /run/vm/source.qmp --destination tcp:127.0.0.1:4444 \\
        --nbd-address tcp:10.0.0.2:10809 --migrate-address tcp:10.0.0.2:4445 \\
        --allow-plaintext --bandwidth 1Gbit/s --downtime 50ms

Exit codes: 0 moved, 1 internal error, 2 usage, 3 refused (nothing was changed),
  4 rolled back, 5 cancelled, 6 stuck (runs on the source, leftovers are listed),
  7 undetermined (not proved to run on one side: qferry recover JOURNAL looks again),
  8 ended (the guest, or its QEMU, ended by itself before it was passed on)";

const RECOVER_EXAMPLES: &str = "\
Examples:
  Which migrations were left by engines that died, and what would a recovery do?
    qferry recover

  Take one of them up:
    qferry recover ~/.local/state/qferry/0pk3vq7d5x1a.journal

Exit codes: those of qferry migrate. 3: refused, nothing was changed (above all: the engine still lives).
  7: undetermined; it says what to find out, and can be run again then";

/// Take up a migration whose engine died: finish it, go back, or say what must be found out
///
/// Looks at both sides, and does what its journal and their answers prove to be safe. Running it twice is harmless;
/// while the engine that writes the journal lives it is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = RECOVER_EXAMPLES)]
pub(super) struct Recover {
    /// The journal that the engine wrote; without it the journals in the state directory are listed
    pub(super) journal: Option<PathBuf>,
    /// Fence a side that does not answer with this executable, in place of what the journal says. With a command,
    /// of the journal or given here, a destination is fenced also where no more is known than that the engine that
    /// died has not started the guest there: recover only if nobody else has
    #[arg(long, value_name = "FILE", value_parser = resolved, requires = "journal")]
    pub(super) fence_command: Option<PathBuf>,
    /// How long that executable may take [default: what the journal says]
    #[arg(long, value_name = "DUR", value_parser = duration)]
    pub(super) fence_timeout: Option<Duration>,
    /// Record every line of both connections in this file, which must not exist yet
    #[arg(long, value_name = "FILE", requires = "journal")]
    pub(super) transcript: Option<PathBuf>,
    /// One JSON object a line on stdout; text for people goes to stderr
    #[arg(long)]
    pub(super) json: bool,
}

const CHECK_EXAMPLES: &str = "\
Examples:
  Could it move, and what is in the way?
    qferry check --source /run/vm/source.qmp --destination /run/vm/destination.qmp

  Compare every byte of the backing files, at no more than 100 MiB/s, and keep what was found beside them:
    qferry check --source /run/vm/source.qmp --destination /run/vm/destination.qmp \\
        --verify-backing full --keep-digests --bandwidth 100MiB/s";

/// What a migration is to do, and how.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The QMP monitor of the QEMU that has the guest: /path, unix:/path or tcp:HOST:PORT
    #[arg(long, value_name = "ADDR")]
    pub(super) source: Address,
    /// The QMP monitor of the QEMU that waits for it
    #[arg(long, value_name = "ADDR")]
    pub(super) destination: Address,
    /// Move this disk, onto the destination's disk of that name; repeatable [default: every writable disk that the two
    /// do not share, paired by qdev id, then device name, then node name]
    #[arg(long = "disk", value_name = "SOURCE[=DESTINATION]", value_parser = disk, help_heading = DISKS)]
    disks: Vec<(String, Option<String>)>,
    /// Leave this disk out; repeatable
    #[arg(long = "skip-disk", value_name = "SOURCE", help_heading = DISKS)]
    skip: Vec<String>,
    /// How storage gets there: incremental copies what the overlays hold, full copies all onto images without backing
    /// files, none copies nothing, for both sides have the same files
    #[arg(long, value_name = "HOW", default_value = "incremental", value_parser = parsed::<StorageMode>, help_heading = DISKS)]
    storage: StorageMode,
    /// How well to prove that the destination's backing files are the source's: full (every byte), sample (ranges
    /// with data, chosen at random, so a single wrong byte may be missed; every byte, where both sides have a kept
    /// digest), metadata (sizes, formats, what is allocated), off (nothing is read, so nor is it seen that the
    /// destination's images are empty)
    #[arg(long, value_name = "HOW", default_value = "sample", value_parser = parsed::<ProofLevel>, help_heading = DISKS)]
    verify_backing: ProofLevel,
    /// How many ranges of 64 KiB to sample of each backing file
    #[arg(long, value_name = "N", default_value = "64", help_heading = DISKS)]
    samples: usize,
    /// Choose the ranges from this seed, which an earlier report showed [default: another one each time]
    #[arg(long, value_name = "SEED", help_heading = DISKS)]
    sample_seed: Option<u64>,
    /// Keep the digest of a backing file that was read in full beside it; it is trusted while the file does not change
    /// and nobody but root and qferry's own user may have written it
    #[arg(long, help_heading = DISKS)]
    keep_digests: bool,
    /// Ask the destination's file systems only for the room of what is copied now, not of the whole disks
    #[arg(long, help_heading = DISKS)]
    overcommit: bool,
    /// First do what `qferry recover` would do with an earlier run whose engine is dead, and remove what it left in the
    /// two QEMUs; a run that is under way is left alone, and refuses this one
    #[arg(long, help_heading = DISKS)]
    clean: bool,
    /// The blackout budget, from the stop of the guest's vCPUs to the guest that runs on the destination [default:
    /// 300ms, or the longest downtime of a policy with a schedule]
    #[arg(long, value_name = "DUR", value_parser = duration)]
    downtime: Option<Duration>,
    /// Hold the budget as it stands: roll back for each millisecond beyond it, in place of allowing 50 % or 50 ms more,
    /// for experiments
    #[arg(long)]
    strict_budget: bool,
    /// Ceiling on the wire for the whole job, such as 100MiB/s or 1Gbit/s [default: unlimited]
    #[arg(long, value_name = "RATE", value_parser = parsed::<Rate>)]
    bandwidth: Option<Rate>,
    /// Ceiling for all disks together [default: unlimited]
    #[arg(long, value_name = "RATE", value_parser = parsed::<Rate>)]
    disk_bandwidth: Option<Rate>,
    /// What may be done so that disks and RAM converge: converge (raise the downtime limit within the budget, then
    /// slow the guest down), postcopy (let it go on at the destination in place of slowing it down), patient (never
    /// slow it down), observe (only say what would be done); nova, vdsm or kubevirt (their published schedules, to
    /// compare); or a TOML file of your own, given with a / or .toml in it
    #[arg(long, value_name = "NAME|FILE", default_value = "converge", value_parser = policy)]
    policy: Policy,
    /// Send RAM over this many channels at once, where one connection does not fill the link. Costs as many threads
    /// on both hosts; not together with postcopy or xbzrle
    #[arg(long, value_name = "N", value_parser = channels)]
    multifd: Option<u8>,
    /// Compress what these channels send, where processors are idle and the link is not: zstd (much the faster) or zlib
    #[arg(long, value_name = "HOW", value_parser = parsed::<Compression>, requires = "multifd")]
    compress: Option<Compression>,
    /// Give up and roll back when not ready to switch over after this long [default: never]
    #[arg(long, value_name = "DUR", value_parser = duration)]
    timeout: Option<Duration>,
    /// The longest from the guest's stop until it runs again somewhere, or is clearly not known to: a QEMU that hangs
    /// is freed by then [default: 10s, or four times the blackout budget]
    #[arg(long, value_name = "DUR", value_parser = duration)]
    switchover_timeout: Option<Duration>,
    /// An executable that makes sure that a side that does not answer cannot run the guest; it is called with source or
    /// destination, its address and the reason, and exit code 0 says that it is fenced. Nobody but root and qferry's
    /// own user may be able to change it. A process on this host is ended without it
    #[arg(long, value_name = "FILE", value_parser = resolved)]
    fence_command: Option<PathBuf>,
    /// How long that executable may take; the guest may stand still meanwhile [default: 30s]
    #[arg(long, value_name = "DUR", value_parser = duration)]
    fence_timeout: Option<Duration>,
    /// Note what is done in this file, which must not exist yet, for qferry recover [default: a file in
    /// $XDG_STATE_HOME/qferry that is removed at the end]
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Note nothing: if the engine dies, only a person can find out what is to be done
    #[arg(long, conflicts_with = "journal")]
    no_journal: bool,
    /// Where the destination listens for RAM: unix:/path or tcp:HOST:PORT [default: a unix socket of this run, if both
    /// monitors are local unix sockets]
    #[arg(long, value_name = "ADDR")]
    migrate_address: Option<Address>,
    /// Where the destination listens for NBD [default: the same]
    #[arg(long, value_name = "ADDR")]
    nbd_address: Option<Address>,
    /// Where the source listens for NBD while backing files are compared [default: a unix socket of this run, if its
    /// monitor is a local unix socket]
    #[arg(long, value_name = "ADDR")]
    source_nbd_address: Option<Address>,
    /// Allow an address other than loopback without TLS
    #[arg(long)]
    allow_plaintext: bool,
    /// Go on although the preflight refuses with this code, at the guest's risk; repeatable
    #[arg(long, value_name = "CODE", value_parser = PossibleValuesParser::new(FindingCode::forcible()))]
    force: Vec<String>,
    /// Leave the source process there, stopped, instead of quitting it. Never send it cont
    #[arg(long)]
    keep_source: bool,
    /// Do not have QEMU log how long each device takes in the blackout. By default it does, by trace events, where its
    /// log (-D, or its stderr) is a file that qferry may read
    #[arg(long)]
    no_device_times: bool,
    /// Look at both sides and say what would be done; change nothing
    #[arg(long)]
    pub(super) plan: bool,
    /// Measure first, for some seconds, and estimate the migration; the outcome then has the estimate beside the
    /// result. check and --plan do so by themselves
    #[arg(long, conflicts_with = "no_measure")]
    predict: bool,
    /// With check or --plan: do not measure the guest and the way to the destination, and send nothing
    #[arg(long)]
    pub(super) no_measure: bool,
    /// One JSON object a line on stdout; text for people goes to stderr
    #[arg(long)]
    pub(super) json: bool,
    /// Show the live view of qferry watch in place of the bars; q leaves it for the bars, Ctrl-C cancels the migration
    #[arg(long, conflicts_with_all = ["json", "plan"])]
    pub(super) tui: bool,
    /// Record every line of both monitors and every decision in this file, which must not exist yet, in full; secrets
    /// are left out [default for a migration: in brief, in $XDG_STATE_HOME/qferry/transcripts, where the last 64 are
    /// kept]
    #[arg(long, value_name = "FILE")]
    pub(super) transcript: Option<PathBuf>,
    /// Record nothing
    #[arg(long, conflicts_with = "transcript")]
    pub(super) no_transcript: bool,
}

impl Options {
    /// The longest that the guest may stand still.
    fn budget(&self) -> Duration {
        self.downtime.or_else(|| self.policy.budget()).unwrap_or(DOWNTIME)
    }

    /// What is asked of the library. A look only predicts.
    pub(super) fn settings(&self, predict: bool) -> Settings {
        Settings {
            predict: self.predict || (predict && !self.no_measure),
            selection: DiskSelection { disks: self.disks.clone(), skip: self.skip.clone(), storage: self.storage },
            verify_backing: self.verify_backing,
            samples: self.samples,
            sample_seed: self.sample_seed,
            keep_digests: self.keep_digests,
            overcommit: self.overcommit,
            clean: self.clean,
            source_nbd_address: self.source_nbd_address.clone(),
            downtime: self.budget(),
            strict_budget: self.strict_budget,
            policy: self.policy.clone(),
            bandwidth: self.bandwidth,
            disk_bandwidth: self.disk_bandwidth,
            multifd: self.multifd,
            compress: self.compress,
            timeout: self.timeout,
            switchover_timeout: self.switchover_timeout,
            fence_command: self.fence_command.clone(),
            fence_timeout: self.fence_timeout.unwrap_or(FENCE),
            journal: match (&self.journal, self.no_journal) {
                (Some(file), _) => JournalPlace::File(file.clone()),
                (None, true) => JournalPlace::Nowhere,
                (None, false) => JournalPlace::StateDirectory,
            },
            migrate_address: self.migrate_address.clone(),
            nbd_address: self.nbd_address.clone(),
            allow_plaintext: self.allow_plaintext,
            force: self.force.iter().cloned().collect(),
            keep_source: self.keep_source,
            device_times: !self.no_device_times,
            ..Settings::default()
        }
    }
}

const PREPARE_EXAMPLES: &str = "\
Examples:
  What the destination needs, as commands; nothing is made:
    qferry prepare --source /run/vm/source.qmp --to /srv/destination

  Make it, and bring the backing files that are not there; run it again after an interruption:
    qferry prepare --source /run/vm/source.qmp --to /srv/destination \\
        --map /srv/base=/srv/destination/base --populate missing --apply

Exit codes: 0 done (or could be done), 1 it failed on the way (what is whole is kept, what is not is removed),
  2 usage, 3 refused (nothing was made), 5 cancelled";

/// Make the images that a destination on this host needs, from the source's chains
///
/// For each writable disk an empty image of the same size and shape, over the same backing files. Without --apply it
/// prints the commands, and the command line for the destination's QEMU; nothing is changed. An image that exists is
/// never overwritten: one that is empty and fits is kept, anything else refuses the whole.
#[derive(Debug, clap::Args)]
#[command(after_help = PREPARE_EXAMPLES)]
pub(super) struct Prepare {
    /// The QMP monitor of the QEMU that has the guest: /path, unix:/path or tcp:HOST:PORT
    #[arg(long, value_name = "ADDR")]
    pub(super) source: Address,
    /// The folder for the images that the guest writes
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    to: Option<PathBuf>,
    /// What a file or folder of the source is at the destination; repeatable, the longest that fits counts [default for
    /// backing files: the same path]
    #[arg(long = "map", value_name = "SOURCE=DESTINATION", value_parser = map)]
    maps: Vec<(PathBuf, PathBuf)>,
    /// Prepare this disk; repeatable [default: every writable disk]
    #[arg(long = "disk", value_name = "SOURCE[=DESTINATION]", value_parser = disk)]
    disks: Vec<(String, Option<String>)>,
    /// Leave this disk out; repeatable
    #[arg(long = "skip-disk", value_name = "SOURCE")]
    skip: Vec<String>,
    /// What the images stand on: the source's backing files, nothing (the whole disk will be sent), or they are shared
    #[arg(long, value_name = "MODE", default_value_t, value_parser = parsed::<StorageMode>)]
    storage: StorageMode,
    /// What becomes of backing files that the destination does not have: they are named, or copied from the source
    /// while the guest runs
    #[arg(long, value_name = "MODE", value_enum, default_value = "never")]
    populate: Populate,
    /// Make those images anew that a migration of qferry has written a part of a disk to before it was called off, and
    /// that nobody has touched since
    #[arg(long)]
    again: bool,
    /// Ceiling for what is copied, such as 100MiB/s or 1Gbit/s [default: unlimited]
    #[arg(long, value_name = "RATE", value_parser = parsed::<Rate>)]
    bandwidth: Option<Rate>,
    /// Where the source listens while backing files are copied: unix:/path or tcp:HOST:PORT [default: a unix socket
    /// of this run, if its monitor is a local unix socket]
    #[arg(long, value_name = "ADDR")]
    source_nbd_address: Option<Address>,
    /// Allow an address other than loopback without TLS
    #[arg(long)]
    allow_plaintext: bool,
    /// qemu-img, if it is not the one in PATH
    #[arg(long, value_name = "PATH", default_value = "qemu-img", hide_default_value = true)]
    qemu_img: PathBuf,
    /// Do it
    #[arg(long)]
    pub(super) apply: bool,
    /// One JSON object a line on stdout; text for people goes to stderr
    #[arg(long)]
    pub(super) json: bool,
}

/// `--populate`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Populate {
    Never,
    Missing,
}

impl Prepare {
    /// What is asked of the library.
    pub(super) fn settings(&self) -> PrepareSettings {
        PrepareSettings {
            selection: DiskSelection { disks: self.disks.clone(), skip: self.skip.clone(), storage: self.storage },
            places: PathMap { maps: self.maps.clone(), to: self.to.clone() },
            populate: match self.populate {
                Populate::Never => PopulateMode::Never,
                Populate::Missing => PopulateMode::Missing,
            },
            again: self.again,
            bandwidth: self.bandwidth,
            nbd_address: self.source_nbd_address.clone(),
            allow_plaintext: self.allow_plaintext,
            qemu_img: self.qemu_img.clone(),
            ..PrepareSettings::default()
        }
    }
}

/// A path from the root on, through links: a command is run from elsewhere, too.
fn resolved(text: &str) -> Result<PathBuf, String> {
    std::fs::canonicalize(text).map_err(|error| error.to_string())
}

/// A path from the root on: a relative one would mean different things to QEMU and to us.
fn absolute(text: &str) -> Result<PathBuf, String> {
    match std::path::absolute(text) {
        Ok(path) => Ok(path.components().collect()),
        Err(error) => Err(error.to_string()),
    }
}

fn map(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let wrong = || "give SOURCE=DESTINATION, two paths; a path with = in it can be given through its folder".to_owned();
    let (source, destination) = text.split_once('=').ok_or_else(wrong)?;
    if destination.is_empty() || destination.contains('=') || !source.starts_with('/') {
        return Err(wrong());
    }
    Ok((PathBuf::from(source), absolute(destination)?))
}

fn parsed<T: FromStr>(text: &str) -> Result<T, T::Err> {
    text.parse()
}

fn channels(text: &str) -> Result<u8, String> {
    text.parse().map_err(|_| format!("write a number of channels, at most {CHANNELS_MAX}; 2 to 8 is usual"))
}

fn disk(text: &str) -> Result<(String, Option<String>), String> {
    let (source, destination) = match text.split_once('=') {
        Some((source, destination)) => (source, Some(destination)),
        None => (text, None),
    };
    if source.is_empty() || destination == Some("") {
        return Err("give SOURCE or SOURCE=DESTINATION, both by qdev id, device or node name".to_owned());
    }
    Ok((source.to_owned(), destination.map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::{super::flags, *};
    use crate::convergence::BUILT_IN;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Settings, clap::Error> {
        let words =
            "qferry migrate --source /s --destination tcp:localhost:4444".split(' ').chain(line.split_whitespace());
        Arguments::try_parse_from(words).map(|arguments| match arguments.verb {
            Verb::Migrate(options) | Verb::Check(options) => options.settings(false),
            _ => unreachable!("migrate was asked for"),
        })
    }

    #[test]
    fn every_option_is_documented() {
        Arguments::command().debug_assert();
        for verb in Arguments::command().get_subcommands() {
            for argument in verb.get_arguments() {
                assert!(argument.get_help().is_some() || argument.is_hide_set(), "{verb} {argument}");
            }
        }
    }

    #[test]
    fn options_become_settings() {
        let settings =
            parse("--downtime 50ms --bandwidth 1Gbit/s --disk a=b --disk c --skip-disk d --timeout 1m").expect("good");
        assert_eq!(settings.downtime, Duration::from_millis(50));
        assert_eq!(settings.bandwidth, Some(Rate(125_000_000)));
        assert_eq!(settings.timeout, Some(Duration::from_secs(60)));
        let disks = vec![("a".to_owned(), Some("b".to_owned())), ("c".to_owned(), None)];
        assert_eq!(settings.selection, DiskSelection { disks, skip: vec!["d".to_owned()], ..DiskSelection::default() });
        let forced = parse("--force machine-type --force qemu-older").expect("good").force;
        assert_eq!(forced, ["machine-type", "qemu-older"].map(str::to_owned).into());
        let settings = parse("--storage full --verify-backing full --samples 9 --sample-seed 7 --clean").expect("good");
        assert_eq!((settings.selection.storage, settings.verify_backing), (StorageMode::Full, ProofLevel::Full));
        assert_eq!((settings.samples, settings.sample_seed, settings.clean), (9, Some(7), true));
        let settings =
            parse("--switchover-timeout 20s --fence-command /bin/true --fence-timeout 90s --journal /j").expect("good");
        assert_eq!(settings.switchover_limit(), Duration::from_secs(20));
        assert_eq!(settings.journal, JournalPlace::File("/j".into()));
        assert!(settings.fence_command.is_some_and(|path| path.is_absolute()));
        assert_eq!(settings.fence_timeout, Duration::from_secs(90));
        assert_eq!(parse("--no-journal").expect("good").journal, JournalPlace::Nowhere);
        assert_eq!(parse("").expect("good").switchover_limit(), Duration::from_secs(10));
        assert_eq!(parse("--downtime 5s").expect("good").switchover_limit(), Duration::from_secs(20));
        let settings = parse("--multifd 4 --compress zstd").expect("good");
        assert_eq!((settings.multifd, settings.compress), (Some(4), Some(Compression::Zstd)));
        assert_eq!(parse("").expect("good").downtime, Duration::from_millis(300));
    }

    #[test]
    fn a_policy_is_built_in_or_a_file() {
        for (name, _) in BUILT_IN {
            assert_eq!(parse(&format!("--policy {name}")).expect(name).policy.name, name);
        }
        assert_eq!(parse("").expect("good").policy, Policy::default());
        // a schedule brings its budget, unless the user has one
        assert_eq!(parse("--policy kubevirt").expect("good").downtime, Duration::from_millis(900));
        assert_eq!(parse("--policy kubevirt --downtime 80ms").expect("good").downtime, Duration::from_millis(80));
        let folder = tempfile::tempdir().expect("a folder");
        let own = folder.path().join("own.toml");
        std::fs::write(&own, "name = 'own'\nthrottle-max = 40\n").expect("written");
        let policy = parse(&format!("--policy {}", own.display())).expect("good").policy;
        assert_eq!((policy.name.as_str(), policy.throttle_max), ("own", 40));
        std::fs::write(&own, "throttle-max = 400\n").expect("written");
        let error = parse(&format!("--policy {}", own.display())).expect_err("too much").to_string();
        assert!(error.contains("throttle-max"), "{error}");
    }

    #[test]
    fn a_preparation_is_read() {
        let prepare = |line: &str| {
            let words = "qferry prepare --source /s".split(' ').chain(line.split_whitespace());
            Arguments::try_parse_from(words).map(|arguments| match arguments.verb {
                Verb::Prepare(options) => options.settings(),
                _ => unreachable!("prepare was asked for"),
            })
        };
        let settings = prepare("--to /d --map /a=/b --map /c/=/d --populate missing --storage full").expect("good");
        let maps = [("/a", "/b"), ("/c", "/d")].map(|(from, to)| (from.into(), to.into())).into();
        assert_eq!(settings.places, PathMap { maps, to: Some("/d".into()) });
        assert_eq!((settings.populate, settings.selection.storage), (PopulateMode::Missing, StorageMode::Full));
        let settings = prepare("").expect("good");
        assert_eq!((settings.populate, settings.selection.storage), (PopulateMode::Never, StorageMode::Incremental));
        assert!(prepare("--to d").expect("good").places.to.is_some_and(|to| to.is_absolute()));
        for line in ["--map /a", "--map a=/b", "--map /a=", "--map /a=/b=/c", "--populate always"] {
            assert!(prepare(line).is_err(), "{line}");
        }
    }

    #[test]
    fn bad_values_are_explained() {
        for (line, word) in [
            ("--downtime fast", "50ms"),
            ("--downtime 50", "50ms"),
            ("--downtime 0s", "--downtime is 0s: give 1ms to"),
            ("--downtime 1h", "give 1ms to 33m 20s, QEMU's own range"),
            ("--bandwidth 0MB/s", "--bandwidth is 0 B/s: nothing would ever arrive"),
            ("--bandwidth 100", "'100' has no unit: use MiB/s"),
            ("--bandwidth 100M", "unknown unit 'M'"),
            ("--bandwidth 10furlong/s", "furlong"),
            ("--disk a=", "SOURCE=DESTINATION"),
            ("--storage half", "incremental"),
            ("--verify-backing yes", "sample"),
            ("--samples 0", "--verify-backing off"),
            ("--samples 1000000", "--verify-backing full"),
            ("--policy hope", "converge, postcopy"),
            ("--policy /nowhere/at/all.toml", "cannot be read"),
            ("--multifd 0", "single connection"),
            ("--multifd 256", "at most 255"),
            ("--multifd 2 --compress lzo", "zstd"),
            ("--compress zstd", "--multifd"),
            ("--switchover-timeout 200ms", "give 1s to"),
            ("--switchover-timeout 1s --downtime 1s", "give at least 3s"),
            ("--fence-command /etc/passwd", "executable"),
            ("--fence-command /no/such/file", "No such file"),
            ("--journal /j --no-journal", "--no-journal"),
            ("--nbd-address ssh://host/x", "ssh"),
            ("--force nonsense", "cpu-features, cpu-model"),
            ("--force disk-size", "machine-type"),
        ] {
            let error = match parse(line) {
                Err(error) => error.to_string(),
                Ok(settings) => flags::worded(&settings.validate().expect_err(line)),
            };
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn every_option_is_a_setting_of_the_library() {
        let settings = serde_json::to_value(Settings::default()).expect("settings can be written");
        let has = |value: &serde_json::Value, name: &str| value.get(name).is_some();
        // what the command alone has to do with, and what it says in other words
        let elsewhere = [
            "help",
            "verbose",
            "source",
            "destination",
            "plan",
            "no_measure",
            "json",
            "tui",
            "transcript",
            "no_transcript",
            "no_journal",
            "no_device_times",
        ];
        let mut options = 0;
        for verb in
            Arguments::command().get_subcommands().filter(|verb| ["migrate", "check"].contains(&verb.get_name()))
        {
            for argument in verb.get_arguments().map(|argument| argument.get_id().as_str()) {
                let found = has(&settings, argument) || has(&settings["selection"], argument);
                assert!(found || elsewhere.contains(&argument), "--{argument} is no setting of the library");
                options += 1;
            }
        }
        assert!(options > 50, "{options}");
    }
}

//! The handle of a preparation, and its course: connect, look at both ends, decide, carry out.

use super::{
    command_line::{self, DestinationCommandLine},
    execution::Execution,
    observation, plugged_in,
    requirements::{self, Requirements, SourceLayout},
    settings::{PopulateMode, PrepareSettings},
    steps::{self, PreparationAction, PreparationStep},
};
use crate::{
    codes::Setting,
    endpoint::{Address, Endpoint},
    migration::{
        Failure, Invalid, Running,
        connection::open,
        ending::panicked,
        interrupt::unless_cancelled,
        running::{AfterPanic, Cancelled, EngineJob, Work},
    },
    preflight::{
        checks::{self, Finding, FindingCode, Severity},
        facts,
    },
    progress::{Phase, Reason, Reporter, Side},
    qemu::Process,
    qmp::Recorder,
    quantity::Rate,
    run_id::RunId,
    storage::{files::qemu_img::QemuImg, model::layout::StorageMode},
};
use serde::Serialize;
use std::path::PathBuf;

/// The preparation of a destination on this host, for the guest of a QEMU. [`Self::plan`] looks, [`Self::start`] does
/// it.
#[derive(Debug, Clone)]
pub struct Preparation {
    source: Endpoint,
    settings: PrepareSettings,
    recorder: Option<Recorder>,
}

/// The plan of a preparation, or its result.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Prepared {
    /// How the preparation ended.
    pub outcome: PreparationOutcome,
    /// Why not everything was done.
    pub reason: Option<Reason>,
    /// The step for each file, a backing file before the images above.
    pub steps: Vec<PreparationStep>,
    /// The destination QEMU's command line, one word per entry, not quoted. If the source's command line is unknown,
    /// only the words to be added.
    pub qemu: Vec<String>,
    /// The findings, blockers first.
    pub findings: Vec<Finding>,
}

/// How a preparation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PreparationOutcome {
    /// Nothing stands in the way; nothing was done yet.
    Planned,
    /// The destination has what it needs.
    Done,
    /// A blocker stands in the way; nothing was made.
    Refused,
    /// A step failed; complete files are kept, incomplete ones removed.
    Failed,
    /// The user cancelled; complete files are kept, incomplete ones removed.
    Cancelled,
}

impl PreparationOutcome {
    /// The exit code of the command.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Planned | Self::Done => 0,
            Self::Refused => 3,
            Self::Failed => 1,
            Self::Cancelled => 5,
        }
    }
}

impl Preparation {
    /// Describes the preparation of a destination on this host, for the guest of a QEMU.
    pub fn new(source: impl Into<Endpoint>) -> Self {
        Self { source: source.into(), settings: PrepareSettings::default(), recorder: None }
    }

    /// Sets all settings at once, in place of everything set before.
    #[must_use]
    pub fn settings(mut self, settings: PrepareSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Sets the folder for the images that the guest writes to.
    #[must_use]
    pub fn to(mut self, folder: impl Into<PathBuf>) -> Self {
        self.settings.places.to = Some(folder.into());
        self
    }

    /// Adds the destination path of a file or folder of the source. May be called more than once.
    #[must_use]
    pub fn map(mut self, source: impl Into<PathBuf>, destination: impl Into<PathBuf>) -> Self {
        self.settings.places.maps.push((source.into(), destination.into()));
        self
    }

    /// Sets whether the images need the source's backing files.
    #[must_use]
    pub fn storage(mut self, mode: StorageMode) -> Self {
        self.settings.selection.storage = mode;
        self
    }

    /// Sets what to do about missing backing files; by default they are only reported.
    #[must_use]
    pub fn populate(mut self, mode: PopulateMode) -> Self {
        self.settings.populate = mode;
        self
    }

    /// Sets the limit for copies of backing files; none by default.
    #[must_use]
    pub fn bandwidth(mut self, ceiling: Rate) -> Self {
        self.settings.bandwidth = Some(ceiling);
        self
    }

    /// Sets the program `qemu-img`, if another than that in `PATH` is to run.
    #[must_use]
    pub fn qemu_img(mut self, program: impl Into<PathBuf>) -> Self {
        self.settings.qemu_img = program.into();
        self
    }

    /// Sets the directory for the socket through which backing files are copied.
    #[must_use]
    pub fn runtime_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.settings.runtime_dir = directory.into();
        self
    }

    /// Records every line of the QMP connection, and every event.
    #[must_use]
    pub fn transcript(mut self, recorder: Recorder) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// Whether every setting can be used.
    ///
    /// # Errors
    /// Every setting that cannot, with what would be right.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.settings.validate()
    }

    /// Looks, and ends with what would be done; nothing is changed.
    ///
    /// # Errors
    /// Settings that cannot be used.
    pub fn plan(self) -> Result<Running<Prepared>, Invalid> {
        self.validate()?;
        Ok(Running::on_a_thread(PrepareJob { wanted: self, apply: false }))
    }

    /// Starts to prepare, on a thread and a runtime of its own.
    ///
    /// # Errors
    /// Settings that cannot be used.
    pub fn start(self) -> Result<Running<Prepared>, Invalid> {
        self.validate()?;
        Ok(Running::on_a_thread(PrepareJob { wanted: self, apply: true }))
    }

    /// Starts to prepare on the current tokio runtime.
    ///
    /// # Errors
    /// Settings that cannot be used; no tokio runtime, or one without its drivers for time and I/O.
    pub fn start_here(self) -> Result<Running<Prepared>, Invalid> {
        self.validate()?;
        Running::on_the_current_runtime(PrepareJob { wanted: self, apply: true })
    }

    async fn look(self, report: Reporter, cancel: Cancelled) -> Prepared {
        let looked = async {
            let source =
                report.during(Phase::Connect, open(Side::Source, &self.source, self.recorder.as_ref())).await?;
            report.during(Phase::Preflight, plan(&source, &self.settings, &RunId::new())).await
        };
        match unless_cancelled(&cancel, looked).await {
            Ok(Ok((prepared, _))) => prepared,
            Ok(Err(failure)) | Err(failure) => Prepared::refused(&failure),
        }
    }

    async fn run(self, report: Reporter, cancel: Cancelled) -> Prepared {
        let (mut cancelled, run) = (cancel.clone(), RunId::new());
        let looked = async {
            let source =
                report.during(Phase::Connect, open(Side::Source, &self.source, self.recorder.as_ref())).await?;
            let (prepared, address) = report.during(Phase::Preflight, plan(&source, &self.settings, &run)).await?;
            Ok((source, prepared, address))
        };
        let looked = tokio::select! {
            biased;
            _ = cancelled.wait_for(|cancelled| *cancelled) => Err(Failure::Cancelled),
            looked = looked => looked,
        };
        let (source, mut prepared, address) = match looked {
            Ok(looked) => looked,
            Err(failure) => return Prepared::refused(&failure),
        };
        if prepared.outcome == PreparationOutcome::Refused {
            return prepared;
        }
        let img = QemuImg::new(&self.settings.qemu_img);
        let settings = &self.settings;
        let apply = Execution { run, source: &source, settings, img: &img, report: &report, address };
        let applied = report.during(Phase::Prepare, apply.run(&mut prepared.steps, cancel)).await;
        prepared.outcome = match &applied {
            Ok(()) => PreparationOutcome::Done,
            Err(Failure::Cancelled) => PreparationOutcome::Cancelled,
            Err(Failure::Partial(_)) if prepared.is_untouched() => PreparationOutcome::Refused,
            Err(_) => PreparationOutcome::Failed,
        };
        prepared.reason = applied.err().map(|failure| failure.reason());
        prepared
    }
}

impl Prepared {
    /// The findings that forbid the preparation.
    pub fn blockers(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Blocker)
    }

    /// The result of a preparation that failed before the plan was made.
    pub(crate) fn refused(failure: &Failure) -> Self {
        let outcome = match failure {
            Failure::Cancelled => PreparationOutcome::Cancelled,
            _ => PreparationOutcome::Refused,
        };
        Self { outcome, reason: Some(failure.reason()), steps: Vec::new(), qemu: Vec::new(), findings: Vec::new() }
    }

    /// The engine itself failed. What is whole is kept, and the rest has temporary names.
    fn broken(message: String) -> Self {
        let reason = Some(Failure::Internal(message).reason());
        Self { outcome: PreparationOutcome::Failed, reason, steps: Vec::new(), qemu: Vec::new(), findings: Vec::new() }
    }

    fn is_untouched(&self) -> bool {
        self.steps.iter().all(|step| step.state == steps::StepState::Planned || step.action == PreparationAction::Keep)
    }
}

struct PrepareJob {
    wanted: Preparation,
    apply: bool,
}

impl EngineJob for PrepareJob {
    type Ended = Prepared;

    fn recorder(&self) -> Option<Recorder> {
        self.wanted.recorder.clone()
    }

    fn work(self, report: Reporter, cancel: Cancelled) -> Work<Prepared> {
        match self.apply {
            true => Box::pin(self.wanted.run(report, cancel)),
            false => Box::pin(self.wanted.look(report, cancel)),
        }
    }

    fn after_panic(&self) -> AfterPanic<Prepared> {
        Box::new(|words, _, _| Box::pin(async move { Prepared::broken(panicked(&words)) }))
    }

    fn lost(_: bool, _: &Reporter) -> Prepared {
        Prepared::broken("the engine came to no end, or had no thread to run on".to_owned())
    }
}

/// Looks at the source and at this host and decides; also returns the address at which the source would listen.
async fn plan(
    source: &Process,
    settings: &PrepareSettings,
    run: &RunId,
) -> Result<(Prepared, Option<Address>), Failure> {
    let facts = facts::gather(source).await?;
    let layout = observation::source_layout(&facts, source);
    let mut requirements = requirements::read(&layout, settings);
    let img = QemuImg::new(&settings.qemu_img);
    let contents = observation::contents(&requirements, layout.local, &img).await;
    let (steps, found) = steps::decide(&requirements, &contents, settings, &img.program().to_string_lossy());
    let mut findings = std::mem::take(&mut requirements.findings);
    findings.extend(found);

    let mut address = None;
    if steps.iter().any(|step| step.action == PreparationAction::Copy) && settings.populate == PopulateMode::Missing {
        address = settings.nbd_address.clone().or_else(|| own_address(settings, run, layout.local));
        match &address {
            Some(address) => findings.extend(checks::listen(address, settings.allow_plaintext)),
            None => {
                let setting = Setting::SourceNbdAddress;
                let why = match &facts.process.unseen {
                    Some(unseen) => format!("{} {unseen}", facts.name),
                    None => format!("the path of a socket in {} would be too long", settings.runtime_dir.display()),
                };
                let finding = Finding::new(FindingCode::AddressMissing, &setting.to_string(), why);
                findings.push(finding.with_remedy(format!("give {setting}, where the source is to listen")));
            }
        }
    }
    let words = observation::command_line(source);
    findings.extend(plugged_in::findings(
        words.as_deref(),
        &facts.machine.devices,
        facts.machine.possible_cpus.as_ref(),
    ));
    let (qemu, notes) = command_line(words, &requirements, &layout);
    findings.extend(notes);
    findings.sort_by_key(|finding| finding.severity);

    let mut prepared = Prepared { outcome: PreparationOutcome::Planned, reason: None, steps, qemu, findings };
    let blockers: Vec<String> = prepared.blockers().map(ToString::to_string).collect();
    let gravest = prepared.blockers().next().map(|finding| finding.code.clone().into());
    if let Some(code) = gravest {
        prepared.reason = Some(Reason { code, message: blockers.join("; ") });
        prepared.outcome = PreparationOutcome::Refused;
    }
    Ok((prepared, address))
}

fn own_address(settings: &PrepareSettings, run: &RunId, local: bool) -> Option<Address> {
    let socket = settings.runtime_dir.join(run.name("prepare"));
    if local { Address::unix(socket).ok() } else { None }
}

/// The destination QEMU's command line, and the findings about it.
pub(super) fn command_line(
    source: Option<Vec<String>>,
    requirements: &Requirements,
    layout: &SourceLayout,
) -> (Vec<String>, Vec<Finding>) {
    let note = |code, message: String| Finding::new(code, "the destination QEMU", message);
    let Some(source) = source else {
        let names = requirements.images.iter().filter_map(|(disk, image)| Some((disk, requirements.moves.get(image)?)));
        let images: Vec<String> = names.map(|(disk, path)| format!("{disk}: {}", path.display())).collect();
        let message = format!(
            "the source is no process of this host, or may not be inspected, so its command line is unknown; the images are {}",
            if images.is_empty() { "as on the source".to_owned() } else { images.join(", ") }
        );
        let words = ["-incoming", "defer", "-S"].map(str::to_owned).into();
        return (words, vec![note(FindingCode::CommandLineUnknown, message)]);
    };
    let DestinationCommandLine { words, replaced, collisions, secrets, inherited } =
        command_line::derive(&source, &requirements.moves, layout.directory.as_deref());
    let mut notes = Vec::new();
    for (disk, image) in requirements.images.iter().filter(|(_, image)| !replaced.contains(image)) {
        if let Some(path) = requirements.moves.get(image) {
            let message = format!("its image does not appear on the source's command line: {}", image.display());
            let remedy = format!("give the destination a device of the same id, on {}", path.display());
            notes.push(Finding::new(FindingCode::NotOnCommandLine, disk, message).with_remedy(remedy));
        }
    }
    if !collisions.is_empty() {
        let message =
            format!("on the source's host these options would collide with the source's: {}", collisions.join("; "));
        notes.push(note(FindingCode::SameHost, message));
    }
    if secrets {
        notes.push(note(FindingCode::SecretHidden, "a secret on the source's command line is not shown".to_owned()));
    }
    if !inherited.is_empty() {
        let message =
            format!("the source inherited open files, which a command line cannot pass: {}", inherited.join("; "));
        notes.push(note(FindingCode::InheritedFiles, message));
    }
    (words, notes)
}

//! The execution of the steps: backing files first, from the bottom up, then the images above them.
//!
//! The execution claims every file before it writes the first one, so two preparations of the same files never get half
//! way each. Exports that it opens in the source are closed again, however the execution ends.

use super::{
    requirements::BackingLayer,
    settings::PrepareSettings,
    steps::{PreparationStep, StepState, StepWork},
};
use crate::{
    endpoint::{self, Address, seen_by},
    migration::{Failure, interrupt::unless_cancelled, runtime_dir},
    nbd,
    progress::{EventKind, PhaseState, Reporter},
    qemu::Process,
    run_id::RunId,
    storage::{
        files::{
            image, layer_copy::LayerCopy, qemu_img::QemuImg, rate_limit::RateLimit, unpublished_file::UnpublishedFile,
        },
        model::chain::file_name,
        verify::read_export::ReadExports,
    },
};
use qapi::qmp;
use std::{fs, os::unix::fs::MetadataExt, time::Duration};
use tokio::{sync::watch, task::spawn_blocking};

/// How long a connection to an export of the source may take.
const DIAL: Duration = Duration::from_secs(10);
/// How long a read may take: on a slow disk under load many others come first.
const READ: Duration = Duration::from_secs(120);

/// The environment of an execution.
pub(super) struct Execution<'a> {
    pub(super) run: RunId,
    pub(super) source: &'a Process,
    pub(super) settings: &'a PrepareSettings,
    pub(super) img: &'a QemuImg,
    pub(super) report: &'a Reporter,
    /// The address at which the source is to listen, if a file is to be copied.
    pub(super) address: Option<Address>,
}

impl Execution<'_> {
    /// Carries out all steps. The state of each step is recorded in `steps`, also if a later step fails.
    pub(super) async fn run(
        &self,
        steps: &mut [PreparationStep],
        cancel: watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        let mut claimed = Vec::new();
        for step in steps.iter() {
            claimed.push(match &step.work {
                StepWork::Nothing => None,
                StepWork::Create(path, _) | StepWork::Remake(path, ..) | StepWork::Copy(path, _) => {
                    Some(UnpublishedFile::claim(path)?)
                }
            });
        }
        let copies = steps.iter().any(|step| matches!(step.work, StepWork::Copy(..)));
        if copies {
            self.populate(steps, &mut claimed, &cancel).await?;
        }
        let creates = async {
            for (step, unpublished) in steps.iter_mut().zip(&mut claimed) {
                let (image, replaced) = match &step.work {
                    StepWork::Create(_, image) => (image, None),
                    StepWork::Remake(_, image, mark) => (image, Some(mark.clone())),
                    StepWork::Copy(..) | StepWork::Nothing => continue,
                };
                let Some(unpublished) = unpublished.take() else { continue };
                self.step(step, PhaseState::Begin);
                let created = self.img.create(image, unpublished.temporary()).await;
                let unpublished = unpublished.in_place_of(replaced);
                self.done(step, created.map_err(Failure::from).map(|()| unpublished)).await?;
            }
            Ok(())
        };
        unless_cancelled(&cancel, creates).await?
    }

    /// Copies the backing files of all copy steps.
    async fn populate(
        &self,
        steps: &mut [PreparationStep],
        claimed: &mut [Option<UnpublishedFile>],
        cancel: &watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        let Some(address) = &self.address else { return Ok(()) };
        let mut nodes = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            if let StepWork::Copy(_, layer) = &step.work {
                nodes.push((self.export(index), layer.node.clone()));
            }
        }
        runtime_dir::make(&self.settings.runtime_dir, [address])?;
        let exports = ReadExports::open(self.source, &self.run, address, &nodes).await?;
        let copied = async {
            let limit = RateLimit::new(self.settings.bandwidth);
            for (index, (step, unpublished)) in steps.iter_mut().zip(claimed.iter_mut()).enumerate() {
                let StepWork::Copy(_, layer) = step.work.clone() else { continue };
                let Some(unpublished) = unpublished.take() else { continue };
                self.step(step, PhaseState::Begin);
                let copied = self.copy(&self.export(index), &layer, &unpublished, step, &limit, address).await;
                self.done(step, copied.map(|()| unpublished)).await?;
            }
            Ok(())
        };
        let copied = tokio::select! {
            biased;
            gone = self.source.gone() => Err(Failure::SourceGone(gone)),
            copied = unless_cancelled(cancel, copied) => copied.and_then(|copied| copied),
        };
        let closed = exports.close(self.source).await;
        copied?;
        closed.map_err(Failure::from)
    }

    async fn copy(
        &self,
        export: &str,
        layer: &BackingLayer,
        unpublished: &UnpublishedFile,
        step: &mut PreparationStep,
        limit: &RateLimit,
        address: &Address,
    ) -> Result<(), Failure> {
        let unreachable = |source| Failure::Export { address: address.to_string(), source };
        let dialed = endpoint::dial(address, DIAL).await.map_err(|error| unreachable(Box::new(error)))?;
        let contexts = nbd::MetaContexts { allocation: true, depth: false };
        let options = nbd::NbdOptions { deadline: READ, contexts };
        let client = nbd::NbdClient::connect(dialed.stream, export, options).await;
        let client = client.map_err(|error| unreachable(Box::new(error)))?;
        let expected = layer.actual_size.unwrap_or(0);
        let copy = LayerCopy { client: &client, unpublished, layer: &step.path, expected, report: self.report };
        let before = self.state(&layer.node).await?;
        let copied = copy.run(limit).await;
        step.bytes = copied.as_ref().ok().copied().or(step.bytes);
        client.close().await;
        copied?;
        if self.state(&layer.node).await? != before {
            return Err(Failure::LayerChanged { layer: step.source.clone() });
        }
        if let Some(backing) = &layer.backing {
            // Read the header itself to see whether it must be changed: the source's command line may override the
            // header, and QEMU reports the override.
            let info = self.img.info(unpublished.temporary()).await?;
            let named = image::names(unpublished.path(), info.backing_filename.as_deref(), &backing.file);
            if !named || info.backing_filename_format.as_deref() != Some(&backing.format) {
                self.img.run(&image::rebase(unpublished.temporary(), &layer.format, backing)).await?;
            }
        }
        Ok(())
    }

    /// The signs of writes to a layer: whether a block job has opened the node for writing, and the modification time
    /// of the file.
    async fn state(&self, node: &str) -> Result<(Option<bool>, Option<(i64, i64)>), Failure> {
        let nodes = self.source.ask(&qmp::query_named_block_nodes { flat: Some(true) }).await?.0;
        let found = nodes.iter().find(|found| found.node_name == node);
        let written = found.zip(self.source.peer()).and_then(|(found, peer)| {
            let file = fs::metadata(seen_by(peer.pid(), &file_name(&found.file))).ok()?;
            Some((file.mtime(), file.mtime_nsec()))
        });
        Ok((found.map(|found| found.ro), written))
    }

    /// Publishes a file that was made, and records the outcome in the step.
    async fn done(&self, step: &mut PreparationStep, made: Result<UnpublishedFile, Failure>) -> Result<(), Failure> {
        let published = match made {
            Ok(unpublished) => match spawn_blocking(move || unpublished.publish()).await {
                Ok(published) => published.map_err(Failure::from),
                Err(error) => Err(crate::storage::files::layer_copy::LayerCopyError::Thread(error).into()),
            },
            Err(failure) => Err(failure),
        };
        step.state = if published.is_ok() { StepState::Done } else { StepState::Failed };
        self.step(step, PhaseState::End);
        published
    }

    fn export(&self, index: usize) -> String {
        self.run.name(format_args!("layer-{index}"))
    }

    fn step(&self, step: &PreparationStep, state: PhaseState) {
        let what = if matches!(step.work, StepWork::Copy(..)) { "copy" } else { "create" };
        self.report.emit(EventKind::Step { step: what.to_owned(), image: step.path.clone(), state });
    }
}

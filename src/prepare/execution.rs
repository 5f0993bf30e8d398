//! Does what was planned: backing files first, the bottom one first, then the images above them.
//!
//! Every file is claimed before the first is made, so that two runs do not meet half way. What it opens in the source is
//! closed again, whatever happens.

use super::{
    requirements::BackingLayer,
    settings::PrepareSettings,
    steps::{PreparationStep, StepState, StepWork},
};
use crate::{
    endpoint::{self, Address},
    migration::{Failure, interrupt::unless_cancelled, runtime_dir},
    nbd,
    preflight::facts::files::seen_by,
    progress::{Kind, PhaseState, Reporter},
    qemu::Process,
    storage::{
        files::{
            image, layer_copy::LayerCopy, qemu_img::QemuImg, rate_limit::RateLimit, unpublished_file::UnpublishedFile,
        },
        model::{chain::file_name, layout::PREFIX},
        verify::read_export::ReadExports,
    },
};
use qapi::qmp;
use std::{fs, os::unix::fs::MetadataExt, time::Duration};
use tokio::{sync::watch, task::spawn_blocking};

/// How long a connection to the source's export may take.
const DIAL: Duration = Duration::from_secs(10);
/// How long it may take to read a chunk: a slow disk under load has many before it.
const READ: Duration = Duration::from_secs(120);

/// What does it.
pub(super) struct Execution<'a> {
    pub(super) source: &'a Process,
    pub(super) settings: &'a PrepareSettings,
    pub(super) img: &'a QemuImg,
    pub(super) report: &'a Reporter,
    /// Where the source is to listen, where something is to be copied.
    pub(super) address: Option<Address>,
}

impl Execution<'_> {
    /// Does it all. What is done is marked so in `steps`, also where a later one fails.
    pub(super) async fn run(
        &self,
        steps: &mut [PreparationStep],
        cancel: watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        let mut claimed = Vec::new();
        for step in steps.iter() {
            claimed.push(match &step.work {
                StepWork::Nothing => None,
                StepWork::Create(path, _) | StepWork::Copy(path, _) => Some(UnpublishedFile::claim(path)?),
            });
        }
        let copies = steps.iter().any(|step| matches!(step.work, StepWork::Copy(..)));
        if copies {
            self.populate(steps, &mut claimed, &cancel).await?;
        }
        let creates = async {
            for (step, partial) in steps.iter_mut().zip(&mut claimed) {
                let (StepWork::Create(_, image), Some(_)) = (&step.work, partial.as_ref()) else { continue };
                self.step(step, PhaseState::Begin);
                let Some(partial) = partial.take() else { continue };
                let created = self.img.create(image, partial.temporary()).await;
                self.done(step, created.map_err(Failure::from).map(|()| partial)).await?;
            }
            Ok(())
        };
        unless_cancelled(&cancel, creates).await?
    }

    /// Copies every backing file that is to be copied.
    async fn populate(
        &self,
        steps: &mut [PreparationStep],
        claimed: &mut [Option<UnpublishedFile>],
        cancel: &watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        let Some(address) = &self.address else { return Ok(()) };
        let mut nodes = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            if let StepWork::Copy(_, below) = &step.work {
                nodes.push((export(index), below.node.clone()));
            }
        }
        runtime_dir::make(&self.settings.runtime_dir, [address])?;
        let view = ReadExports::open(self.source, address, &nodes).await?;
        let copied = async {
            let ceiling = RateLimit::new(self.settings.bandwidth);
            for (index, (step, partial)) in steps.iter_mut().zip(claimed.iter_mut()).enumerate() {
                let StepWork::Copy(_, below) = step.work.clone() else { continue };
                let Some(partial) = partial.take() else { continue };
                self.step(step, PhaseState::Begin);
                let copied = self.copy(&export(index), &below, &partial, step, &ceiling, address).await;
                self.done(step, copied.map(|()| partial)).await?;
            }
            Ok(())
        };
        let copied = tokio::select! {
            biased;
            gone = self.source.gone() => Err(Failure::SourceGone(gone)),
            copied = unless_cancelled(cancel, copied) => copied.and_then(|copied| copied),
        };
        let closed = view.close(self.source).await;
        copied?;
        closed.map_err(Failure::from)
    }

    async fn copy(
        &self,
        export: &str,
        below: &BackingLayer,
        partial: &UnpublishedFile,
        step: &mut PreparationStep,
        ceiling: &RateLimit,
        address: &Address,
    ) -> Result<(), Failure> {
        let unreachable = |source| Failure::Export { address: address.to_string(), source };
        let dialed = endpoint::dial(address, DIAL).await.map_err(|error| unreachable(Box::new(error)))?;
        let contexts = nbd::MetaContexts { allocation: true, depth: false };
        let options = nbd::NbdOptions { deadline: READ, contexts };
        let client = nbd::NbdClient::connect(dialed.stream, export, options).await;
        let client = client.map_err(|error| unreachable(Box::new(error)))?;
        let expected = below.actual_size.unwrap_or(0);
        let populate =
            LayerCopy { client: &client, unpublished: partial, layer: &step.path, expected, report: self.report };
        let before = self.state(&below.node).await?;
        let copied = populate.run(ceiling).await;
        step.bytes = copied.as_ref().ok().copied().or(step.bytes);
        client.close().await;
        copied?;
        if self.state(&below.node).await? != before {
            return Err(Failure::LayerChanged { layer: step.source.clone() });
        }
        if let Some(backing) = &below.backing {
            // the header itself says whether it must be changed: what QEMU told may have been overridden when it started
            let info = self.img.info(partial.temporary()).await?;
            let named = image::names(partial.path(), info.backing_filename.as_deref(), &backing.file);
            if !named || info.backing_filename_format.as_deref() != Some(&backing.format) {
                self.img.run(&image::rebase(partial.temporary(), &below.format, backing)).await?;
            }
        }
        Ok(())
    }

    /// What shows that a layer was written to: a block job opens it for writing, and its file has a time.
    async fn state(&self, node: &str) -> Result<(Option<bool>, Option<(i64, i64)>), Failure> {
        let nodes = self.source.ask(&qmp::query_named_block_nodes { flat: Some(true) }).await?.0;
        let found = nodes.iter().find(|found| found.node_name == node);
        let written = found.zip(self.source.peer()).and_then(|(found, peer)| {
            let file = fs::metadata(seen_by(peer.pid(), &file_name(&found.file))).ok()?;
            Some((file.mtime(), file.mtime_nsec()))
        });
        Ok((found.map(|found| found.ro), written))
    }

    /// Gives a file its name, if it was made.
    async fn done(&self, step: &mut PreparationStep, made: Result<UnpublishedFile, Failure>) -> Result<(), Failure> {
        let published = match made {
            Ok(partial) => match spawn_blocking(move || partial.publish()).await {
                Ok(published) => published.map_err(Failure::from),
                Err(error) => Err(crate::storage::files::layer_copy::LayerCopyError::Thread(error).into()),
            },
            Err(failure) => Err(failure),
        };
        step.state = if published.is_ok() { StepState::Done } else { StepState::Failed };
        self.step(step, PhaseState::End);
        published
    }

    fn step(&self, step: &PreparationStep, state: PhaseState) {
        let what = if matches!(step.work, StepWork::Copy(..)) { "copy" } else { "create" };
        self.report.emit(Kind::Step { step: what.to_owned(), image: step.path.clone(), state });
    }
}

fn export(index: usize) -> String {
    format!("{PREFIX}layer-{index}")
}

//! Reads, through read-only exports, whether images are the same and whether others are empty.
//!
//! Exports that are opened in the two QEMUs are closed again, also when the reading is cancelled. An image that a guest
//! writes to must never be read.

use super::{
    comparison_plan::{ComparisonPlan, EmptyImage, MirroredParts},
    covered::first_uncovered,
    facts::SideFacts,
};
use crate::{
    endpoint::{Address, dial},
    nbd,
    progress::{Reporter, describe},
    qemu::{Process, ProcessError},
    quantity::Bytes,
    run_id::RunId,
    storage::{
        files::rate_limit::RateLimit,
        verify::{
            comparison::{self, ComparisonSettings, OpenImage},
            digest_cache::ImageLocation,
            identity::{ComparedImage, Comparison, ComparisonResult, ImagePair, ProofMethod},
            read_export::ReadExports,
        },
    },
};
use serde::Serialize;
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, task::JoinSet};

/// The longest time that a connection to an export may take.
const DIAL: Duration = Duration::from_secs(5);
/// The number of images that are compared at once.
const AT_ONCE: usize = 4;
/// The part of an image whose map is asked for at once, bytes.
const WINDOW: u64 = 64 << 30;

/// One of the two QEMUs, with the address at which it can be made to listen for readers.
#[derive(Debug, Clone, Copy)]
pub struct ReadableSide<'a> {
    /// The run that reads.
    pub run: &'a RunId,
    /// The QEMU.
    pub process: &'a Process,
    /// The facts that were gathered from it.
    pub facts: &'a SideFacts,
    /// The address; `None` where nothing is read from this side.
    pub address: Option<&'a Address>,
}

/// The images of both sides as they were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageContents {
    /// The comparisons of the images that must be the same.
    pub comparisons: Vec<Comparison>,
    /// The checks of the images that must be empty.
    pub empty_images: Vec<EmptyImageCheck>,
}

/// An image that must be empty, and its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EmptyImageCheck {
    /// The source's disk that is copied onto the image.
    pub disk: String,
    /// The image's file on the destination.
    pub file: String,
    /// Whether the image is over a backing file.
    pub overlay: bool,
    /// Whether the image is on record as spent: it holds a part of a disk, from a migration that was called off.
    pub spent: bool,
    /// The state of the image.
    pub holds: EmptyImageState,
}

/// The state of an image that must be empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmptyImageState {
    /// The image is empty.
    Nothing,
    /// The image has data, first at this byte.
    Data(u64),
    /// The image has a part of a disk, first at this byte, from a migration that was called off, and the next mirror
    /// writes over all of it.
    Spent(u64),
    /// The image is a LUKS volume without qcow2 above: to QEMU all of such a volume is data, also what nobody has
    /// written.
    AllData,
    /// Another process has the image open for writing; QEMU's words.
    Locked(String),
    /// The image could not be read, for this reason.
    Unknown(String),
}

/// Reads the images of a plan. Gives `None` when the reading was cancelled; its exports are closed then, too.
pub async fn read(
    source: ReadableSide<'_>,
    destination: ReadableSide<'_>,
    plan: &ComparisonPlan,
    how: &ComparisonSettings,
    ceiling: &Arc<RateLimit>,
    report: &Reporter,
    cancelled: impl Future<Output = ()>,
) -> Option<ImageContents> {
    let mut contents = ImageContents { comparisons: plan.same.clone(), empty_images: Vec::new() };
    let read = plan.to_read(how.proof);
    let unread: Vec<&ImagePair> = plan.comparable().filter(|twin| !read.contains(twin)).collect();
    contents.comparisons.extend(unread.iter().map(|twin| by_metadata(twin)));
    if read.is_empty() && plan.empty_images.is_empty() {
        return Some(contents);
    }
    let nodes = |image: fn(&ImagePair) -> &ComparedImage| -> Vec<(String, String)> {
        read.iter()
            .enumerate()
            .map(|(index, twin)| (export(source.run, "image", index), image(twin).node.clone()))
            .collect()
    };
    let (source_nodes, destination_nodes) = (nodes(|twin| &twin.source), nodes(|twin| &twin.destination));
    // the destination's overlays are offered one by one, later: a refusal because of a lock must name its image
    let (source_view, destination_view) =
        tokio::join!(open(source, &source_nodes), open(destination, &destination_nodes));
    let mut views = OpenedViews { source: source_view, destination: destination_view };
    let cancelled = std::pin::pin!(cancelled);
    let done = tokio::select! {
        biased;
        () = cancelled => None,
        done = views.read(source, destination, &read, &plan.empty_images, how, ceiling, report) => Some(done),
    };
    for (view, side) in [(views.source, source), (views.destination, destination)] {
        if let Some(OpenedView { view: Ok(view), .. }) = view {
            if let Err(error) = view.close(side.process).await {
                let why = describe(&error);
                report.warn("view-not-closed", format!("the exports for reading may still be open: {why}"));
            }
        }
    }
    let (comparisons, empty_images) = done?;
    contents.comparisons.extend(comparisons);
    contents.empty_images = empty_images;
    Some(contents)
}

fn by_metadata(twin: &ImagePair) -> Comparison {
    twin.judged(ProofMethod::Metadata { map: None }, ComparisonResult::Same)
}

/// The name of an export. The id of the run keeps readers from taking an image of another run's server for their own.
fn export(run: &RunId, what: &str, index: usize) -> String {
    run.name(format_args!("{what}-{index}"))
}

/// Opens exports of these nodes; `None` where a side has no address, so that nothing is read from it.
async fn open(side: ReadableSide<'_>, nodes: &[(String, String)]) -> Option<OpenedView> {
    let address = side.address?;
    let (process, run, mut refused) = (side.process, side.run, vec![None; nodes.len()]);
    let view = match ReadExports::open(process, run, address, nodes).await {
        // QEMU does not say which of the nodes it cannot export, so each is offered alone
        Err(error) if error.is_refusal() && !nodes.is_empty() => {
            match ReadExports::open(process, run, address, &[]).await {
                Ok(mut view) => {
                    for ((name, node), refused) in nodes.iter().zip(&mut refused) {
                        *refused = view.offer(process, name, node).await.err().map(|error| describe(&error));
                    }
                    Ok(view)
                }
                failed => failed,
            }
        }
        opened => opened,
    };
    Some(OpenedView { view, refused })
}

/// The exports that are open on one side.
struct OpenedView {
    view: Result<ReadExports, ProcessError>,
    /// The reason why an image is not offered, for each image in order.
    refused: Vec<Option<String>>,
}

impl OpenedView {
    /// The reason why an image cannot be read; `None` where it can.
    fn refusal(&self, index: usize) -> Option<String> {
        let alone = || self.refused.get(index).cloned().flatten();
        self.view.as_ref().err().map(|error| describe(error)).or_else(alone)
    }
}

/// The exports that are open on the two sides.
struct OpenedViews {
    source: Option<OpenedView>,
    destination: Option<OpenedView>,
}

impl OpenedViews {
    #[allow(clippy::too_many_arguments, reason = "one call passes on all that a reading needs")]
    async fn read(
        &mut self,
        source: ReadableSide<'_>,
        destination: ReadableSide<'_>,
        twins: &[&ImagePair],
        empty_images: &[EmptyImage],
        how: &ComparisonSettings,
        ceiling: &Arc<RateLimit>,
        report: &Reporter,
    ) -> (Vec<Comparison>, Vec<EmptyImageCheck>) {
        let mut under_way = JoinSet::new();
        let few = Arc::new(Semaphore::new(AT_ONCE));
        let mut comparisons: Vec<Option<Comparison>> = vec![None; twins.len()];
        for (index, &twin) in twins.iter().enumerate() {
            if let Some(why) = refusal(&self.source, index).or_else(|| refusal(&self.destination, index)) {
                comparisons[index] = Some(unproved(twin, why));
                continue;
            }
            let places = [place(source.facts, &twin.source), place(destination.facts, &twin.destination)];
            let (Some(address), Some(other)) = (source.address, destination.address) else { continue };
            let addresses = [address.clone(), other.clone()];
            let (twin, how, ceiling, report) = (twin.clone(), how.clone(), Arc::clone(ceiling), report.clone());
            let (few, name) = (Arc::clone(&few), export(source.run, "image", index));
            under_way.spawn(async move {
                let _turn = few.acquire().await;
                (index, pair(&name, &twin, addresses, places, &how, &ceiling, &report).await)
            });
        }
        while let Some(compared) = under_way.join_next().await {
            match compared {
                Ok((index, comparison)) => comparisons[index] = Some(comparison),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        let comparisons = comparisons.into_iter().flatten().collect();
        let mut checked = Vec::new();
        let mut silent = None;
        for (index, image) in empty_images.iter().enumerate() {
            let mut holds = match &mut self.destination {
                // a QEMU that does not answer is waited for once, and not once for each disk
                _ if silent.is_some() => EmptyImageState::Unknown(silent.clone().unwrap_or_default()),
                Some(OpenedView { view: Ok(view), .. }) => {
                    let name = export(destination.run, "overlay", index);
                    match view.offer(destination.process, &name, &image.node).await {
                        Ok(()) => holds(view.address(), &name, image).await,
                        Err(error) => match error.refusal() {
                            Some(words) if words.contains("lock") => EmptyImageState::Locked(words.to_owned()),
                            Some(_) => EmptyImageState::Unknown(describe(&error)),
                            None => {
                                silent = Some(describe(&error));
                                EmptyImageState::Unknown(describe(&error))
                            }
                        },
                    }
                }
                view => EmptyImageState::Unknown(refusal(view, index).unwrap_or_default()),
            };
            if let EmptyImageState::Data(start) = holds {
                if image.spent && self.is_written_over(source, destination, index, image).await {
                    holds = EmptyImageState::Spent(start);
                } else if destination.facts.nodes.iter().any(|node| node.node_name == image.node && node.drv == "luks")
                {
                    holds = EmptyImageState::AllData;
                }
            }
            let (disk, file) = (image.disk.clone(), image.file.clone());
            checked.push(EmptyImageCheck { disk, file, overlay: image.overlay, spent: image.spent, holds });
        }
        (comparisons, checked)
    }

    /// Whether the next mirror writes over all that a spent image holds, as far as that can be read. The destination
    /// offers the image already.
    async fn is_written_over(
        &mut self,
        source: ReadableSide<'_>,
        destination: ReadableSide<'_>,
        index: usize,
        image: &EmptyImage,
    ) -> bool {
        let (node, granularity) = match &image.mirrored {
            MirroredParts::All => return true,
            MirroredParts::Fewer => return false,
            MirroredParts::Allocated { node, granularity } => (node, *granularity),
        };
        let views = (&mut self.source, &self.destination);
        let (Some(OpenedView { view: Ok(view), .. }), Some(OpenedView { view: Ok(other), .. })) = views else {
            return false;
        };
        let name = export(source.run, "top", index);
        if let Err(error) = view.offer(source.process, &name, node).await {
            tracing::debug!(%error, "what a mirror is going to write is not known");
            return false;
        }
        let overlay = export(destination.run, "overlay", index);
        let clients = tokio::try_join!(
            connect(view.address(), &name, image.size),
            connect(other.address(), &overlay, image.size)
        );
        let uncovered = match clients {
            Ok((top, overlay)) => uncovered(&top, &overlay, image.size, granularity).await,
            Err(why) => Err(why),
        };
        tracing::debug!(?uncovered, file = %image.file, "the first byte of a spent image that no mirror writes");
        uncovered == Ok(None)
    }
}

/// The first byte that the image has of its own and that no mirror from `top` writes.
async fn uncovered(
    top: &nbd::NbdClient,
    overlay: &nbd::NbdClient,
    size: u64,
    granularity: u64,
) -> Result<Option<u64>, String> {
    let mut at = 0;
    while at < size {
        // windows begin at multiples of every granularity
        let length = WINDOW.min(size - at);
        let asked = tokio::try_join!(top.query_depths(at, length), overlay.query_depths(at, length));
        let (written, held) = asked.map_err(|error| describe(&error))?;
        if let Some(byte) = first_uncovered(&held, &written, granularity) {
            return Ok(Some(byte));
        }
        at += length;
    }
    Ok(None)
}

async fn pair(
    name: &str,
    twin: &ImagePair,
    [source_address, destination_address]: [Address; 2],
    [source_place, destination_place]: [Option<ImageLocation>; 2],
    how: &ComparisonSettings,
    ceiling: &Arc<RateLimit>,
    report: &Reporter,
) -> Comparison {
    let connected = tokio::try_join!(
        connect(&source_address, name, twin.source.virtual_size),
        connect(&destination_address, name, twin.destination.virtual_size)
    );
    match connected {
        Ok((source, destination)) => {
            let source = OpenImage { image: &twin.source, client: &source, place: source_place };
            let destination = OpenImage { image: &twin.destination, client: &destination, place: destination_place };
            comparison::compare(twin, source, destination, how, ceiling, report).await
        }
        Err(why) => unproved(twin, why),
    }
}

/// The reason why an image of a side cannot be read; `None` where it can.
fn refusal(opened: &Option<OpenedView>, index: usize) -> Option<String> {
    match opened {
        Some(opened) => opened.refusal(index),
        None => Some("there is no address to read it from".to_owned()),
    }
}

/// The paths of an image's files on this host; `None` where one is not known: data files are not looked up, and a block
/// device's file does not tell when its contents changed.
fn place(facts: &SideFacts, image: &ComparedImage) -> Option<ImageLocation> {
    if facts.chain(&image.node).layers.iter().any(|layer| layer.data_file.is_some()) {
        return None;
    }
    let known = image.files.iter().map(|file| facts.files.get(file).filter(|file| !file.is_device));
    let files: Option<Vec<_>> = known.map(|file| file.map(|file| (file.path.clone(), file.id))).collect();
    let files = files?;
    let kind = format!("{} {:?}", image.virtual_size, image.formats);
    Some(ImageLocation { path: files.first()?.0.clone(), files, kind })
}

fn unproved(twin: &ImagePair, why: String) -> Comparison {
    twin.judged(ProofMethod::Metadata { map: None }, ComparisonResult::Unproved { why })
}

/// Connects to the export of an image. An export of another size than the image's is refused: it is another image's, or
/// would be read in part.
async fn connect(address: &Address, export: &str, size: u64) -> Result<nbd::NbdClient, String> {
    let dialed = dial(address, DIAL).await.map_err(|error| describe(&error))?;
    let client = nbd::NbdClient::connect(dialed.stream, export, nbd::NbdOptions::default()).await;
    let client = client.map_err(|error| format!("{address}: {}", describe(&error)))?;
    match client.size() {
        exported if exported == size => Ok(client),
        exported => Err(format!(
            "{address}: the export has {}, and the image {}",
            Bytes(exported).exactly(),
            Bytes(size).exactly()
        )),
    }
}

async fn holds(address: &Address, export: &str, image: &EmptyImage) -> EmptyImageState {
    let client = match connect(address, export, image.size).await {
        Ok(client) => client,
        Err(why) => return EmptyImageState::Unknown(why),
    };
    let mut at = 0;
    while at < image.size {
        let length = WINDOW.min(image.size - at);
        let first = match image.overlay {
            // a written zero hides the data of the backing file, so every allocated cluster counts
            true => client.query_depths(at, length).await.map(|all| all.iter().find(|d| d.depth == 1).map(|d| d.start)),
            false => client.query_extents(at, length).await.map(|all| all.iter().find(|e| !e.zero).map(|e| e.start)),
        };
        match first {
            Ok(Some(start)) => return EmptyImageState::Data(start),
            Ok(None) => at += length,
            Err(error) => return EmptyImageState::Unknown(describe(&error)),
        }
    }
    EmptyImageState::Nothing
}

//! Reads, through read-only exports, whether images are the same and whether others are empty.
//!
//! What it opens in the two QEMUs it closes again, also when it is cancelled. It must never read what a guest writes to.

use super::{
    facts::Facts,
    wanted::{Blank, Wanted},
};
use crate::{
    endpoint::{Address, dial},
    nbd,
    progress::{Reporter, describe},
    qemu::{Process, ProcessError},
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

/// How long a connection to an export may take.
const DIAL: Duration = Duration::from_secs(5);
/// How many images are compared at once.
const AT_ONCE: usize = 4;
/// How much of a map is asked for at once.
const WINDOW: u64 = 64 << 30;

/// One of the two QEMUs, and where it can be made to listen for readers.
#[derive(Debug, Clone, Copy)]
pub struct Reachable<'a> {
    /// The QEMU.
    pub process: &'a Process,
    /// What it said.
    pub facts: &'a Facts,
    /// Where; it needs none if nothing of it is read.
    pub address: Option<&'a Address>,
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Of images that are to be the same.
    pub comparisons: Vec<Comparison>,
    /// Of images that are to be empty.
    pub fillings: Vec<Filling>,
}

/// What is in an image that is to be empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Filling {
    /// The source's disk that goes onto it.
    pub disk: String,
    /// Its file on the destination.
    pub file: String,
    /// Whether it is over a backing file.
    pub overlay: bool,
    /// What was found.
    pub holds: Holds,
}

/// What was found in an image that is to be empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holds {
    /// Nothing.
    Nothing,
    /// Something, first at this byte.
    Data(u64),
    /// Another process has it open for writing.
    Locked(String),
    /// It could not be read.
    Unknown(String),
}

/// Reads what is wanted. Gives `None` when it was cancelled; what it opened is closed then, too.
pub async fn read(
    source: Reachable<'_>,
    destination: Reachable<'_>,
    wanted: &Wanted,
    how: &ComparisonSettings,
    ceiling: &Arc<RateLimit>,
    report: &Reporter,
    cancelled: impl Future<Output = ()>,
) -> Option<Contents> {
    let mut contents = Contents { comparisons: wanted.same.clone(), fillings: Vec::new() };
    let read = wanted.to_read(how.proof);
    let told: Vec<&ImagePair> = wanted.comparable().filter(|twin| !read.contains(twin)).collect();
    contents.comparisons.extend(told.iter().map(|twin| by_metadata(twin)));
    if read.is_empty() && wanted.blanks.is_empty() {
        return Some(contents);
    }
    let nodes = |image: fn(&ImagePair) -> &ComparedImage| -> Vec<(String, String)> {
        read.iter().enumerate().map(|(index, twin)| (export("image", index), image(twin).node.clone())).collect()
    };
    let (ours, theirs) = (nodes(|twin| &twin.source), nodes(|twin| &twin.destination));
    // the destination's overlays are added one by one: a lock on one of them tells something of that one
    let (here, there) = tokio::join!(open(source, &ours), open(destination, &theirs));
    let mut views = Views { here, there };
    let cancelled = std::pin::pin!(cancelled);
    let done = tokio::select! {
        biased;
        () = cancelled => None,
        done = views.read(source, destination, &read, &wanted.blanks, how, ceiling, report) => Some(done),
    };
    for (view, side) in [(views.here, source), (views.there, destination)] {
        if let Some(Opened { view: Ok(view), .. }) = view {
            if let Err(error) = view.close(side.process).await {
                let why = describe(&error);
                report.warn("view-not-closed", format!("what was opened for reading may still be there: {why}"));
            }
        }
    }
    let (comparisons, fillings) = done?;
    contents.comparisons.extend(comparisons);
    contents.fillings = fillings;
    Some(contents)
}

fn by_metadata(twin: &ImagePair) -> Comparison {
    twin.judged(ProofMethod::Metadata { map: None }, ComparisonResult::Same)
}

fn export(what: &str, index: usize) -> String {
    format!("{what}-{index}")
}

/// `None` where there is no address, so nothing to be read either.
async fn open(side: Reachable<'_>, nodes: &[(String, String)]) -> Option<Opened> {
    let address = side.address?;
    let (process, mut refused) = (side.process, vec![None; nodes.len()]);
    let view = match ReadExports::open(process, address, nodes).await {
        // one of them cannot be exported: which one?
        Err(error) if error.is_refusal() && !nodes.is_empty() => match ReadExports::open(process, address, &[]).await {
            Ok(mut view) => {
                for ((name, node), refused) in nodes.iter().zip(&mut refused) {
                    *refused = view.offer(process, name, node).await.err().map(|error| describe(&error));
                }
                Ok(view)
            }
            failed => failed,
        },
        opened => opened,
    };
    Some(Opened { view, refused })
}

/// What is open on one side.
struct Opened {
    view: Result<ReadExports, ProcessError>,
    /// Of the images in their order, why one is not.
    refused: Vec<Option<String>>,
}

impl Opened {
    /// Why an image cannot be read.
    fn refusal(&self, index: usize) -> Option<String> {
        let alone = || self.refused.get(index).cloned().flatten();
        self.view.as_ref().err().map(|error| describe(error)).or_else(alone)
    }
}

/// What is open on both sides.
struct Views {
    here: Option<Opened>,
    there: Option<Opened>,
}

impl Views {
    #[allow(clippy::too_many_arguments, reason = "all of a reading, handed on once")]
    async fn read(
        &mut self,
        source: Reachable<'_>,
        destination: Reachable<'_>,
        twins: &[&ImagePair],
        blanks: &[Blank],
        how: &ComparisonSettings,
        ceiling: &Arc<RateLimit>,
        report: &Reporter,
    ) -> (Vec<Comparison>, Vec<Filling>) {
        let mut under_way = JoinSet::new();
        let few = Arc::new(Semaphore::new(AT_ONCE));
        let mut comparisons: Vec<Option<Comparison>> = vec![None; twins.len()];
        for (index, &twin) in twins.iter().enumerate() {
            if let Some(why) = refusal(&self.here, index).or_else(|| refusal(&self.there, index)) {
                comparisons[index] = Some(unproved(twin, why));
                continue;
            }
            let places = [place(source.facts, &twin.source), place(destination.facts, &twin.destination)];
            let (Some(here), Some(there)) = (source.address, destination.address) else { continue };
            let addresses = [here.clone(), there.clone()];
            let (twin, how, ceiling, report) = (twin.clone(), how.clone(), Arc::clone(ceiling), report.clone());
            let few = Arc::clone(&few);
            under_way.spawn(async move {
                let _turn = few.acquire().await;
                (index, pair(index, &twin, addresses, places, &how, &ceiling, &report).await)
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
        let mut fillings = Vec::new();
        let mut silent = None;
        for (index, blank) in blanks.iter().enumerate() {
            let holds = match &mut self.there {
                // one that does not answer is not waited for once for each disk
                _ if silent.is_some() => Holds::Unknown(silent.clone().unwrap_or_default()),
                Some(Opened { view: Ok(view), .. }) => {
                    match view.offer(destination.process, &export("overlay", index), &blank.node).await {
                        Ok(()) => holds(view.address(), &export("overlay", index), blank).await,
                        Err(error) => match error.refusal() {
                            Some(words) if words.contains("lock") => Holds::Locked(words.to_owned()),
                            Some(_) => Holds::Unknown(describe(&error)),
                            None => {
                                silent = Some(describe(&error));
                                Holds::Unknown(describe(&error))
                            }
                        },
                    }
                }
                view => Holds::Unknown(refusal(view, index).unwrap_or_default()),
            };
            let (disk, file) = (blank.disk.clone(), blank.file.clone());
            fillings.push(Filling { disk, file, overlay: blank.overlay, holds });
        }
        (comparisons, fillings)
    }
}

async fn pair(
    index: usize,
    twin: &ImagePair,
    [here, there]: [Address; 2],
    [ours, theirs]: [Option<ImageLocation>; 2],
    how: &ComparisonSettings,
    ceiling: &Arc<RateLimit>,
    report: &Reporter,
) -> Comparison {
    let name = export("image", index);
    let (ours_size, theirs_size) = (twin.source.virtual_size, twin.destination.virtual_size);
    match tokio::try_join!(connect(&here, &name, ours_size), connect(&there, &name, theirs_size)) {
        Ok((source, destination)) => {
            let source = OpenImage { image: &twin.source, client: &source, place: ours };
            let destination = OpenImage { image: &twin.destination, client: &destination, place: theirs };
            comparison::compare(twin, source, destination, how, ceiling, report).await
        }
        Err(why) => unproved(twin, why),
    }
}

/// Why an image of a side cannot be read.
fn refusal(opened: &Option<Opened>, index: usize) -> Option<String> {
    match opened {
        Some(opened) => opened.refusal(index),
        None => Some("there is no address to read it from".to_owned()),
    }
}

/// Where an image's files are on this host, if all of them are known: a data file is not looked up.
fn place(facts: &Facts, image: &ComparedImage) -> Option<ImageLocation> {
    if facts.chain(&image.node).layers.iter().any(|layer| layer.data_file.is_some()) {
        return None;
    }
    let files: Option<Vec<_>> = image.files.iter().map(|file| Some(facts.files.get(file)?.path.clone())).collect();
    let files = files?;
    let kind = format!("{} {:?}", image.virtual_size, image.formats);
    Some(ImageLocation { path: files.first()?.clone(), files, kind })
}

fn unproved(twin: &ImagePair, why: String) -> Comparison {
    twin.judged(ProofMethod::Metadata { map: None }, ComparisonResult::Unproved { why })
}

/// Reaches an export of an image of this size: one of another size is not it, or would be read in part.
async fn connect(address: &Address, export: &str, size: u64) -> Result<nbd::NbdClient, String> {
    let dialed = dial(address, DIAL).await.map_err(|error| describe(&error))?;
    let client = nbd::NbdClient::connect(dialed.stream, export, nbd::NbdOptions::default()).await;
    let client = client.map_err(|error| format!("{address}: {}", describe(&error)))?;
    match client.size() {
        exported if exported == size => Ok(client),
        exported => Err(format!("{address}: the export has {exported} bytes, and the image {size}")),
    }
}

async fn holds(address: &Address, export: &str, blank: &Blank) -> Holds {
    let client = match connect(address, export, blank.size).await {
        Ok(client) => client,
        Err(why) => return Holds::Unknown(why),
    };
    let mut at = 0;
    while at < blank.size {
        let length = WINDOW.min(blank.size - at);
        let first = match blank.overlay {
            // a zero that is written hides what the backing file has there
            true => client.query_depths(at, length).await.map(|all| all.iter().find(|d| d.depth == 1).map(|d| d.start)),
            false => client.query_extents(at, length).await.map(|all| all.iter().find(|e| !e.zero).map(|e| e.start)),
        };
        match first {
            Ok(Some(start)) => return Holds::Data(start),
            Ok(None) => at += length,
            Err(error) => return Holds::Unknown(describe(&error)),
        }
    }
    Holds::Nothing
}

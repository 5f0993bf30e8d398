//! Flushes the images of both sides while the guest still runs.
//!
//! QEMU flushes every image when the guest stops, and the destination flushes its own when a mirror ends. A guest that
//! writes without flushing leaves seconds of writing in the host's page cache, and all of that would fall into the
//! blackout. Images that were flushed shortly before have little left.
//!
//! Threads flush the files beside QEMU: a flush by a command would keep QEMU's main loop, and the guest with it.
//! Nothing waits for a thread, and a file system that hangs keeps one thread for each image.

use crate::{preflight::facts::SideFacts, progress::Reporter, storage::files::flush::flush};
use std::{
    collections::BTreeSet,
    path::PathBuf,
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

/// The time from the end of a flush to the begin of the next one of that image.
const PAUSE: Duration = Duration::from_secs(1);
/// The time of one flush that is told.
const NOTABLE: Duration = Duration::from_secs(1);

/// Flushes images, again and again.
pub(super) struct ImageFlusher {
    images: Vec<(PathBuf, FlushState)>,
    /// Whether a slow flush was told.
    told: bool,
}

/// What is known of the flushes of one image.
enum FlushState {
    /// No flush is under way; the last one ended then.
    Rests(Option<Instant>),
    /// A flush was begun then. The thread gives its time, and none where the image cannot be flushed.
    Flushes(Instant, JoinHandle<Option<Duration>>),
    /// The image cannot be flushed from here.
    Refused,
}

impl ImageFlusher {
    /// For the images of two QEMUs that are files of this host.
    pub(super) fn new(sides: [&SideFacts; 2]) -> Self {
        let files = sides.into_iter().flat_map(SideFacts::flushed_files);
        // both sides have the file of a shared disk
        let mut known = BTreeSet::new();
        let images = files.filter(|file| known.insert(file.id));
        let images = images.map(|file| (file.path.clone(), FlushState::Rests(None))).collect();
        Self { images, told: false }
    }

    /// Begins the flushes that are due, and tells of the first that is slow. Waits for nothing.
    pub(super) fn look(&mut self, report: &Reporter) {
        for (path, state) in &mut self.images {
            let flushed_for = state.flushed_for();
            if !self.told && flushed_for.is_some_and(|time| time >= NOTABLE) {
                self.told = true;
                let words = format!(
                    "{} takes more than {NOTABLE:?} to flush: what is flushed while the guest runs is not waited for \
                     when the guest stops",
                    path.display()
                );
                report.action("flush-images", words);
            }
            if state.is_due() {
                *state = FlushState::begin(path.clone());
            }
        }
    }
}

impl FlushState {
    fn begin(path: PathBuf) -> Self {
        let flush = move || {
            let begun = Instant::now();
            match flush(&path) {
                Ok(()) => {
                    let took = begun.elapsed();
                    tracing::debug!(path = %path.display(), ?took, "flushed");
                    Some(took)
                }
                Err(error) => {
                    tracing::debug!(path = %path.display(), %error, "not flushed");
                    None
                }
            }
        };
        // No thread of the runtime: the end of the runtime waits for those, and a flush may hang.
        match Builder::new().name("qferry-flush".to_owned()).spawn(flush) {
            Ok(thread) => Self::Flushes(Instant::now(), thread),
            Err(_) => Self::Refused,
        }
    }

    /// The time of the flush that is under way, or that has ended since the last look.
    fn flushed_for(&mut self) -> Option<Duration> {
        let Self::Flushes(begun, thread) = self else { return None };
        let time = begun.elapsed();
        if !thread.is_finished() {
            return Some(time);
        }
        let ended = std::mem::replace(self, Self::Refused);
        if let Self::Flushes(begun, thread) = ended {
            if let Ok(Some(took)) = thread.join() {
                *self = Self::Rests(Some(begun + took));
                return Some(took);
            }
        }
        None
    }

    fn is_due(&self) -> bool {
        matches!(self, Self::Rests(ended) if ended.is_none_or(|ended| ended.elapsed() >= PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::{Event, EventKind, EventSink};
    use std::{
        fs,
        sync::{Arc, Mutex, mpsc},
        thread,
    };

    /// The actions that were told.
    #[derive(Default)]
    struct ToldActions(Mutex<Vec<String>>);

    impl EventSink for ToldActions {
        fn emit(&self, event: &Event) {
            if let EventKind::Action { action, .. } = &event.kind {
                self.0.lock().unwrap().push(action.clone());
            }
        }
    }

    fn flusher(images: impl Into<Vec<(PathBuf, FlushState)>>) -> (ImageFlusher, Arc<ToldActions>, Reporter) {
        let told = Arc::<ToldActions>::default();
        (ImageFlusher { images: images.into(), told: false }, told.clone(), Reporter::new(told))
    }

    #[test]
    fn an_image_is_flushed_again_after_a_pause_and_what_is_none_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let [image, none] = ["image", "none"].map(|name| folder.path().join(name));
        fs::write(&image, [1; 5000]).unwrap();
        let images = [image, none].map(|path| (path, FlushState::Rests(None)));
        let (mut flusher, _, report) = flusher(images);
        flusher.look(&report);
        assert!(flusher.images.iter().all(|(_, state)| matches!(state, FlushState::Flushes(..))));
        while flusher.images.iter().any(|(_, state)| matches!(state, FlushState::Flushes(..))) {
            thread::sleep(Duration::from_millis(1));
            flusher.look(&report);
        }
        assert!(matches!(flusher.images[1].1, FlushState::Refused));
        flusher.images[0].1 = FlushState::Rests(Some(Instant::now()));
        assert!(flusher.images.iter().all(|(_, state)| !state.is_due()));
        flusher.images[0].1 = FlushState::Rests(Instant::now().checked_sub(PAUSE));
        assert!(flusher.images[0].1.is_due());
    }

    #[test]
    fn a_file_system_that_hangs_is_told_once_and_waited_for_by_nobody() {
        let (thaw, frozen) = mpsc::channel();
        let thread = thread::spawn(move || frozen.recv().ok());
        let begun = Instant::now().checked_sub(NOTABLE).unwrap();
        let (mut flusher, told, report) = flusher([(PathBuf::from("image"), FlushState::Flushes(begun, thread))]);
        for _ in 0..3 {
            flusher.look(&report);
            assert!(matches!(flusher.images[0].1, FlushState::Flushes(..)));
        }
        assert_eq!(*told.0.lock().unwrap(), ["flush-images"]);
        thaw.send(NOTABLE).unwrap();
        while matches!(flusher.images[0].1, FlushState::Flushes(..)) {
            flusher.look(&report);
        }
    }
}

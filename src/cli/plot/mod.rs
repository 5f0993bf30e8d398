//! `qferry transcript --plot`: a transcript as a picture.
//!
//! The room owns the picture and its file. It must never take memory by the size of a transcript, and never write over
//! a file that somebody else has made.

mod blackout;
pub(crate) mod chart;
mod content;
mod devices;
mod file;
pub(crate) mod ink;
mod page;
mod sheet;

use crate::recording::{RecordedTimeline, RecordingReader};
use content::PlotContent;
use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

pub(super) use file::PlotFileError;

/// The file that a plot goes to, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlotPlace {
    pub(super) path: PathBuf,
    is_page: bool,
}

impl FromStr for PlotPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = PathBuf::from(text);
        let is_page = match path.extension().and_then(|extension| extension.to_str()) {
            Some("svg") => false,
            Some("html" | "htm") => true,
            _ => return Err("write a name that ends in .svg or .html".to_owned()),
        };
        Ok(Self { path, is_page })
    }
}

impl PlotPlace {
    /// Looks whether the plot could be written, before anything is read for it.
    ///
    /// # Errors
    /// The reason why not.
    pub(super) fn check(&self) -> Result<(), PlotFileError> {
        file::check(&self.path)
    }

    /// Writes the plot of a transcript.
    ///
    /// # Errors
    /// The reason why the file cannot be written.
    pub(super) fn write(&self, plot: &str) -> Result<(), PlotFileError> {
        file::write(&self.path, plot)
    }

    /// The plot of the transcript that `source` gives.
    ///
    /// # Errors
    /// The transcript cannot be read.
    pub(super) fn draw(&self, path: &Path, source: impl Read) -> io::Result<String> {
        let mut reader = RecordingReader::new(source);
        let mut timeline = RecordedTimeline::default();
        for line in reader.by_ref() {
            timeline.add(line?);
        }
        let content = PlotContent::of(path, &timeline, reader.faults());
        if self.is_page { page::page(&content) } else { page::picture(&content) }
    }
}

#[cfg(test)]
mod tests;
